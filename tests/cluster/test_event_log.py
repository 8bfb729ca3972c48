"""The cluster's log: what waits while Redis is away or slow."""

from __future__ import annotations

import asyncio

import pytest
from tests.cluster.nodes import asynchronous

from penstock.cluster.bus import BusDown
from penstock.cluster.event_log import EventLog


class SlowBus:
    """Takes entries while, at each of them, a model says more."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.more = None
        self.down = False

    def key(self, name: str) -> str:
        """See `Bus`."""
        return name

    async def command(self, *arguments: object) -> None:
        """See `Bus`."""
        await asyncio.sleep(0)
        if self.down:
            raise BusDown("it is away")
        self.taken.append(str(arguments[arguments.index("text") + 1]))
        if self.more is not None:
            self.more()


@asynchronous
async def test_a_model_that_talks_faster_than_redis_takes_it_does_not_hold_up_the_node():
    bus = SlowBus()
    log = EventLog(bus, "a")  # type: ignore[arg-type]
    bus.more = lambda: [log.say("model.log", "more") for _ in range(2)]
    log.say("model.log", "first")
    async with asyncio.timeout(5):
        await log.flush()
    assert bus.taken[0] == "first"
    bus.more = None
    async with asyncio.timeout(5):
        await log.flush()
        await log.flush()
    assert len(bus.taken) >= 3


@asynchronous
async def test_what_waits_is_bounded_and_what_is_dropped_is_counted():
    bus = SlowBus()
    log = EventLog(bus, "a")  # type: ignore[arg-type]
    bus.down = True
    for number in range(2000):
        log.say("x", f"entry {number}")
        if number % 500 == 0:
            with pytest.raises(BusDown):
                await log.flush()
    bus.down = False
    for _ in range(3):
        await log.flush()
    said = sum(int(text.split()[0]) for text in bus.taken if "were dropped" in text)
    entries = [text for text in bus.taken if text.startswith("entry")]
    assert entries[-1] == "entry 1999"
    assert len(entries) + said == 2000
    assert len(bus.taken) <= 505
