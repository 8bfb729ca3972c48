"""Leadership: a lease with a term that only grows. Every write of a leader is a script that checks the term.

`Leadership` is the pure part: a leader stops believing in itself at two thirds of its lease, by its monotonic clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from penstock.clock import Clock
from penstock.cluster.bus import Bus, BusDown
from penstock.cluster.transaction.participant import RENEWALS, TRUSTED


@dataclass
class Leadership:
    """What this node knows of the leader; pure, times are monotonic seconds."""

    seconds: float
    term: int = 0
    """The highest term heard of."""
    leader: str = ""
    """Who leads, as far as is known."""
    _mine: int = 0
    _until: float = float("-inf")

    def answered(self, node: str, sent_at: float, won: bool, term: int, leader: str) -> None:
        """Redis answered a claim sent at `sent_at`. Answers about older terms change nothing."""
        if term < self.term:
            return
        self.term, self.leader = term, leader
        if won:
            self.leader = node
            self._mine, self._until = term, max(self._until, sent_at + TRUSTED * self.seconds)
        else:
            self.resign()

    def resign(self) -> None:
        """Lead no longer."""
        self._mine, self._until = 0, float("-inf")

    def held(self, now: float) -> int:
        """The term in which this node leads at `now`; 0: it does not."""
        return self._mine if now < self._until else 0

    @property
    def claimed(self) -> int:
        """The term to renew: also a lease no longer trusted may be renewed, as long as Redis still has it."""
        return self._mine


class Membership(Protocol):
    """What an election has to know of this node."""

    @property
    def member(self) -> bool:
        """Whether it is a member whose lease is trusted."""
        ...

    @property
    def incarnation(self) -> int: ...


class Election:
    """Claims and renews leadership while this node is a member. `on_change` is called when it is won or lost."""

    def __init__(
        self, bus: Bus, node: str, membership: Membership, clock: Clock, on_change: Callable[[], None]
    ) -> None:
        self._bus, self._node, self._membership, self._clock = bus, node, membership, clock
        self._on_change = on_change
        self.state = Leadership(bus.settings.leader_lease)

    @property
    def term(self) -> int:
        """The term in which this node leads right now; 0: it does not."""
        return self.state.held(self._clock.monotonic()) if self._membership.member else 0

    async def run(self) -> None:
        """Take part in elections for ever."""
        before = 0
        while True:
            if self._membership.member:
                await self.claim()
            else:
                self.state.resign()
            if self.term != before:
                before = self.term
                self._on_change()
            await asyncio.sleep(self._bus.settings.leader_lease / RENEWALS)

    async def claim(self) -> None:
        """One claim or renewal."""
        sent_at = self._clock.monotonic()
        keys = ("leader", "term", "members", f"node:{self._node}", "log")
        try:
            won, term, *leader = await self._bus.script(
                "lead",
                [self._bus.key(k) for k in keys],
                [
                    self._node,
                    self._membership.incarnation,
                    round(self._bus.settings.leader_lease * 1000),
                    self.state.claimed,
                    self.state.term,
                ],
            )
        except BusDown:
            return
        self.state.answered(self._node, sent_at, bool(won), int(term), leader[0] if leader else "")
