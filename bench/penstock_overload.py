"""A flow that is fed ten times faster than it can process: 30,000 records of 500 bytes per second into a step that
takes 3,000. Without back-pressure it would keep 13 MB more in memory every second."""

from __future__ import annotations

import time

import penstock as ps

RATE = 30_000
CAPACITY = 3_000


def wide(number: int) -> str:
    return f"{number:0500d}"


def slow(record: str) -> str:
    """Work that takes 1/CAPACITY seconds."""
    until = time.perf_counter() + 1 / CAPACITY
    while time.perf_counter() < until:
        pass
    return record


flow = ps.Flow("overload")
(
    flow.source("numbers", ps.sequence(rate=RATE))
    .map("wide", wide)
    .key_by("key", lambda record: record[-2:])
    .fold("slow", 0, lambda state, record: (state + 1, slow(record)))
    .sink("out", ps.null())
)
