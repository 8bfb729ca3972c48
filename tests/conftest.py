"""Plugins that hold for every test."""

pytest_plugins = ["pytester", "tests.plugins.leaks", "tests.plugins.services"]
