"""What connectors are given in these tests, and what is left when they are through."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from penstock.clock import FakeClock
from penstock.flow.connector import ConnectorContext, EndOfInput, Reader


class Skipped:
    """A bad-record policy that skips and remembers."""

    def __init__(self) -> None:
        self.raw: list[Any] = []
        self.errors: list[str] = []

    def __call__(self, raw: Any, error: Exception) -> None:
        self.raw.append(raw)
        self.errors.append(str(error))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1000.0)


@pytest.fixture
def ctx(clock: FakeClock) -> ConnectorContext:
    return ConnectorContext("flow", "step", clock=clock)


@pytest.fixture
def skipped() -> Skipped:
    return Skipped()


@pytest.fixture
def unique() -> str:
    """A name that no other test run uses, for tables, topics and streams."""
    return f"penstock_test_{uuid.uuid4().hex[:12]}"


def read_all(reader: Reader, limit: int = 1000) -> list[Any]:
    """Everything up to the end of the input; closes the reader."""
    records: list[Any] = []
    try:
        while True:
            records += reader.read(limit)
    except EndOfInput:
        return records
    finally:
        reader.close()


def read_until(reader: Reader, count: int, seconds: float = 20.0) -> list[Any]:
    """At least `count` records of a reader that is fed by a thread."""
    records: list[Any] = []
    wait_for(lambda: records.extend(reader.read(1000)) or len(records) >= count, seconds)
    return records


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Until the condition holds; fails when it does not within the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.005)
