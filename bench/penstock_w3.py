"""W3 on Penstock: records at a rate, through one shuffle into another worker process, latency at the sink."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import penstock as ps
from bench.measure import Latencies, key_of, schedule


@dataclass(frozen=True)
class Arrivals(ps.Sink):
    """Notes when each record arrives."""

    def open(self, ctx: ps.ConnectorContext) -> ps.Writer:
        return ArrivalsWriter()


class ArrivalsWriter(ps.Writer):
    """Keeps (number, emitted, arrived)."""

    def __init__(self) -> None:
        self.seen = Latencies()

    def write(self, records: Sequence[Any]) -> None:
        for _key, (_count, number, emitted) in records:
            self.seen.add(number, emitted)

    def close(self) -> None:
        self.seen.report()


def stamped(number: int) -> tuple[int, int]:
    return number, time.monotonic_ns()


def count(state: int, record: tuple[int, int]) -> tuple[int, tuple[int, int, int]]:
    return state + 1, (state + 1, *record)


rate, total = schedule()
flow = ps.Flow("w3")
(
    flow.source("numbers", ps.sequence(total, rate=rate))
    .map("stamp", stamped)
    .key_by("key", lambda record: key_of(record[0]))
    .fold("count", 0, count)
    .sink("out", Arrivals())
)
