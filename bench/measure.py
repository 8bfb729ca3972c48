"""What a contestant reports, in its own process and with the standard library alone (peers have other interpreters).

Clocks: `time.monotonic_ns`, which on one machine is the same in every process.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from array import array
from pathlib import Path


class Throughput:
    """Counts records as they arrive. The first batch starts the clock and is not counted, so that neither start-up nor
    compilation enters the rate."""

    def __init__(self) -> None:
        self.records = self.skipped = 0
        self.first = self.last = 0

    def add(self, records: int) -> None:
        """So many records have just arrived."""
        self.last = time.monotonic_ns()
        if not self.first:
            self.first, self.skipped = self.last, records
        self.records += records

    def report(self) -> None:
        """Append to the file that `BENCH_OUT` names; several processes may."""
        if self.records:
            report(records=self.records, skipped=self.skipped, first=self.first, last=self.last)


def report(**facts: float | str) -> None:
    """Append one JSON line to the file that `BENCH_OUT` names."""
    with Path(os.environ["BENCH_OUT"]).open("a") as out:
        out.write(json.dumps(facts) + "\n")


class Latencies:
    """(number, emitted, arrived) of every record at a sink, kept in memory and written at the end."""

    def __init__(self) -> None:
        self.rows = array("q")

    def add(self, number: int, emitted: int) -> None:
        """Record `number`, emitted at that time (monotonic ns), has just arrived."""
        self.rows.extend((number, emitted, time.monotonic_ns()))

    def report(self) -> None:
        """Write beside the file that `BENCH_OUT` names, one file per process; a later report replaces an earlier."""
        if self.rows:
            path = Path(f"{os.environ['BENCH_OUT']}.{os.getpid()}")
            partial = path.with_suffix(".partial")
            partial.write_bytes(self.rows.tobytes())
            partial.rename(path)


def read_latencies(out: Path) -> list[tuple[int, int, int]]:
    """All rows that the sinks of one run wrote."""
    rows = array("q")
    for path in out.parent.glob(out.name + ".*"):
        if path.suffix != ".partial":
            rows.frombytes(path.read_bytes())
    values = rows.tolist()
    return sorted(zip(values[0::3], values[1::3], values[2::3], strict=True))


class Pace:
    """A steady rate for sources that ask how many records are due."""

    def __init__(self, rate: float, total: int) -> None:
        self.rate, self.total, self.given = rate, total, 0
        self.began = time.monotonic_ns()

    def due(self) -> range:
        """The numbers that are due now and were not given yet; empty when there are none."""
        until = min(self.total, int((time.monotonic_ns() - self.began) * self.rate / 1e9) + 1)
        numbers = range(self.given, max(until, self.given))
        self.given = numbers.stop
        return numbers

    @property
    def ended(self) -> bool:
        """Whether all were given."""
        return self.given >= self.total

    def wait(self) -> float:
        """Seconds until the next one is due."""
        return max(0.0, self.given / self.rate - (time.monotonic_ns() - self.began) / 1e9)

    def sleep(self) -> None:
        """Wait until the next one is due."""
        with contextlib.suppress(ValueError):
            time.sleep(self.wait())


def setting(name: str) -> str:
    """`BENCH_<NAME>` from the environment: INPUT, RATE, SECONDS …"""
    return os.environ[f"BENCH_{name}"]


def schedule() -> tuple[float, int]:
    """Rate (records/s) and number of records of a latency run."""
    rate = float(setting("RATE"))
    return rate, int(rate * float(setting("SECONDS")))


KEYS = 1000
"""Distinct keys of the latency runs."""


def key_of(number: int) -> str:
    """The key of a record."""
    return f"key-{number % KEYS}"
