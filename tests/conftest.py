"""Plugins that hold for every test."""

import os

# Those who test side by side are told the width of a terminal; output into a pipe has none.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

pytest_plugins = ["pytester", "tests.plugins.leaks", "tests.plugins.services"]


def pytest_collection_modifyitems(items):
    """The longest first, so that those who test side by side end together."""
    items.sort(key=lambda item: ("/faults/" not in item.nodeid, "/cluster/" not in item.nodeid))
