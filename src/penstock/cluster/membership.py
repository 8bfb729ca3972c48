"""Being a member: a lease that this node renews, and that it stops trusting well before Redis lets it run out.

`Lease` is the pure part. Its clock is this node's monotonic one, read *before* a renewal is sent, so whatever Redis and
the network do, the node stops its executors (at two thirds of the lease) before anybody else may believe it dead.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from penstock.clock import Clock
from penstock.cluster.bus import Bus, BusDown
from penstock.errors import ClusterError
from penstock.settings import ClusterSettings

TRUSTED = 2 / 3
"""The share of a lease after which its holder no longer trusts it."""
RENEWALS = 6
"""A lease is renewed so many times within its length."""
_JOIN_FOR_LEASES = 4
"""A name whose former owner was killed is free after one lease; one that is still held after so many is in use."""


class Standing(Enum):
    """What a node may do."""

    OUT = "out"
    """Not a member: no executor may run."""
    MEMBER = "member"


@dataclass
class Lease:
    """A lease as its holder sees it; pure, times are monotonic seconds."""

    seconds: float
    incarnation: int = 0
    """The latest one that this process had."""
    _sent_at: float | None = None

    def granted(self, sent_at: float, incarnation: int) -> None:
        """Redis granted (or renewed) it; the request was sent at `sent_at`."""
        if incarnation < self.incarnation:
            return
        self.incarnation = incarnation
        if self._sent_at is None or sent_at > self._sent_at:
            self._sent_at = sent_at

    def refused(self) -> None:
        """Redis says that this incarnation is no longer a member."""
        self._sent_at = None

    def trusted_until(self) -> float:
        """Until when this node may act as a member."""
        return float("-inf") if self._sent_at is None else self._sent_at + TRUSTED * self.seconds

    def standing(self, now: float) -> Standing:
        """What the node may do at `now`."""
        return Standing.MEMBER if now < self.trusted_until() else Standing.OUT


Fields = Callable[[], dict[str, str | int | float]]
"""What the lease tells of the node."""


class Membership:
    """Joins, renews, notices the loss, joins again. `on_joined(incarnation)` and `on_lost(reason)` are awaited."""

    def __init__(
        self,
        bus: Bus,
        node: str,
        fields: Fields,
        clock: Clock,
        on_joined: Callable[[int], Awaitable[None]],
        on_lost: Callable[[str], Awaitable[None]],
    ) -> None:
        self._bus, self._node, self._fields, self._clock = bus, node, fields, clock
        self._on_joined, self._on_lost = on_joined, on_lost
        self._settings: ClusterSettings = bus.settings
        self._nonce = secrets.token_hex(8)
        self.lease = Lease(self._settings.lease)
        self.problem = "it has not joined the cluster yet"

    @property
    def member(self) -> bool:
        """Whether this node may act as a member now."""
        return self.lease.standing(self._clock.monotonic()) is Standing.MEMBER

    @property
    def incarnation(self) -> int:
        """The latest incarnation of this node."""
        return self.lease.incarnation

    async def join(self) -> None:
        """Join once. Raises `BusDown`, or `ClusterError` when the name stays in use by another process."""
        limit = self._clock.monotonic() + _JOIN_FOR_LEASES * self._settings.lease
        while True:
            sent_at = self._clock.monotonic()
            granted, number = await self._bus.script(
                "join",
                [self._bus.key(k) for k in ("members", "incarnations", f"node:{self._node}", "log")],
                [self._node, self._nonce, self._milliseconds(), self.lease.incarnation, *self._flat()],
            )
            if granted:
                self.lease.granted(sent_at, int(number))
                return
            if self._clock.monotonic() > limit:
                raise ClusterError(
                    f"another node named {self._node!r} is a member of the cluster at {self._bus.place}",
                    remedy="give this one another name (--name), or this cluster another prefix",
                )
            await asyncio.sleep(max(0.01, min(int(number) / 1000, self._settings.lease / RENEWALS)))

    async def leave(self) -> None:
        """Say that this node goes. Best effort: the lease runs out otherwise."""
        if not self.member:
            return
        incarnation = self.lease.incarnation
        self.lease.refused()
        keys = ("members", f"node:{self._node}", "leader", f"metrics:{self._node}", "log")
        try:
            await self._bus.script("leave", [self._bus.key(k) for k in keys], [self._node, incarnation])
            await self._bus.ring()
        except ClusterError:
            pass

    async def run(self) -> None:
        """Stay a member for ever; the first `join` has been done by the caller."""
        while True:
            if not self.member:
                await self._come_back()
            await asyncio.sleep(self._settings.lease / RENEWALS)
            reason = await self._renew()
            if reason is not None or not self.member:
                self.problem = reason or f"Redis at {self._bus.place} could not be reached in time"
                self.lease.refused()
                await self._on_lost(self.problem)

    async def _come_back(self) -> None:
        pause = self._settings.lease / RENEWALS
        while not self.member:
            try:
                await self.join()
            except ClusterError as error:
                self.problem = error.message
                await asyncio.sleep(pause)
                pause = min(pause * 2, self._settings.lease)
        await self._on_joined(self.lease.incarnation)

    async def _renew(self) -> str | None:
        """One renewal; the reason if this incarnation is no longer a member."""
        sent_at = self._clock.monotonic()
        left = self.lease.trusted_until() - sent_at
        try:
            async with asyncio.timeout(max(0.0, left)):
                kept = await self._bus.script(
                    "renew",
                    [self._bus.key("members"), self._bus.key(f"node:{self._node}")],
                    [
                        self._node,
                        self.lease.incarnation,
                        self._nonce,
                        round(self._settings.lease * 1000),
                        *self._flat(),
                    ],
                )
        except (BusDown, TimeoutError) as error:
            self.problem = str(error) or "Redis did not answer"
            return None
        except ClusterError as error:
            return error.message
        if not kept:
            return "its membership ended: the lease had run out, or Redis lost its memory"
        self.lease.granted(sent_at, self.lease.incarnation)
        return None

    def _milliseconds(self) -> int:
        return round(self._settings.lease * 1000)

    def _flat(self) -> list[str | int | float]:
        return [part for item in self._fields().items() for part in item]
