"""The sources of a primary: what is read becomes an event of the order log before it goes into the chain."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from penstock import codec
from penstock.clock import Clock
from penstock.errors import UsageError
from penstock.flow.connector import ConnectorContext, EndOfInput, Reader, Source
from penstock.worker.payload import encode_rows
from penstock.worker.replicated.live import Live, Partition
from penstock.worker.sinks import naming


@dataclass(slots=True, eq=False)
class Reading:
    """One partition that is read here."""

    at: Partition
    reader: Reader
    source: Source
    idle_after: float
    retry_at: float = 0.0
    """Do not read before (monotonic)."""
    idle_at: float = float("inf")
    taken: int = 0
    """Records read so far by this replica."""
    waiting: deque[tuple[int, Callable[[], None]]] = field(default_factory=deque)
    """Pushes: (records read when it is in the log, whom to tell)."""
    owed: deque[tuple[int, Any]] = field(default_factory=deque)
    """(log position, offset): the source is told when the position is protected."""
    acknowledges: bool = False

    def next_event(self, limit: int, clock: Clock) -> tuple[list[Any], list[Any] | None] | None:
        """What to log next: the event, and the records if it has any; `None` when there is nothing now."""
        try:
            with naming(self.at.step):
                records = self.reader.read(limit)
        except EndOfInput:
            return ["end", self.at.number], None
        if records:
            self.idle_at = float("inf")
            self.taken += len(records)
            with naming(self.at.step, "what it reads cannot be kept: "):
                rows = encode_rows(records, None, None)
                offset = codec.dumps(self.reader.offset())
            return ["read", self.at.number, offset, clock.time_ns(), rows], records
        now = clock.monotonic()
        wait = self.reader.next_at()
        self.retry_at = float("inf") if wait is None else wait
        if self.source.bounded or self.at.idle:
            return None
        self.idle_at = min(self.idle_at, now + self.idle_after)
        if now >= self.idle_at:
            self.idle_at = float("inf")
            return ["idle", self.at.number], None
        self.retry_at = min(self.retry_at, self.idle_at)
        return None


def new_partitions(live: Live, step: str, source: Source, ctx: ConnectorContext) -> list[list[Any]]:
    """Partitions of `step` that are this executor's and that the log does not know yet: (step, partition, lane, packed
    offset). Raises `UsageError` when a known one is gone from a bounded source."""
    partitions = list(source.shares(ctx.executors))
    known = {lane.partition for lane in live.lanes if lane.step == step}
    gone = sorted(known - set(partitions))
    if gone and source.bounded:
        raise UsageError(
            f"source {step!r}: partition {gone[0]!r} was read before and is not there any more",
            remedy="bring the input back",
        )
    mine = [partitions[place] for place in range(ctx.index, len(partitions), ctx.executors)]
    return [[step, name, 0, codec.dumps(None)] for name in mine if name not in known]


def opened(lane: Partition, source: Source, ctx: ConnectorContext, idle_after: float) -> Reading:
    """Open a partition at the offset that was executed."""
    reader = source.open(lane.partition, lane.offset, ctx)
    acknowledges = type(reader).retained is not Reader.retained
    return Reading(lane, reader, source, idle_after, acknowledges=acknowledges)
