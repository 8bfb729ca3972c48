"""Tests that need a real server say so: `@pytest.mark.services("mqtt", "postgresql")`.

Without the server such a test is skipped; with `PENSTOCK_REQUIRE_SERVICES=1` a skip of it counts as a failure, so that
a continuous-integration machine cannot pass by lacking what it should test against.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Generator

import pytest

ADDRESSES = {
    "mqtt": ("127.0.0.1", 1883),
    "redis": ("127.0.0.1", 6379),
    "postgresql": ("127.0.0.1", 5432),
    "mariadb": ("127.0.0.1", 3306),
    "nats": ("127.0.0.1", 4222),
}


def address(service: str) -> tuple[str, int]:
    """Where `service` is: `PENSTOCK_TEST_MQTT=host:port` and so on, or its usual port on this machine."""
    given = os.environ.get(f"PENSTOCK_TEST_{service.upper()}")
    if not given:
        return ADDRESSES[service]
    host, _, port = given.rpartition(":")
    return host, int(port)


def reachable(service: str) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection(address(service), timeout=1.0):
            return True
    except OSError:
        return False


def _required() -> bool:
    return os.environ.get("PENSTOCK_REQUIRE_SERVICES") == "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("services"):
        missing = [name for name in mark.args if not reachable(name)]
        if missing:
            pytest.skip(f"no server for {', '.join(missing)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and _required() and item.get_closest_marker("services"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} must run here (PENSTOCK_REQUIRE_SERVICES=1) but was skipped: {reason}"
    return report
