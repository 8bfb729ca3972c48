"""Plugins that hold for every test."""

pytest_plugins = ["pytester", "tests.plugins.leaks", "tests.plugins.services"]


def pytest_collection_modifyitems(items):
    """The longest first, so that those who test side by side end together."""
    items.sort(key=lambda item: ("/faults/" not in item.nodeid, "/cluster/" not in item.nodeid))
