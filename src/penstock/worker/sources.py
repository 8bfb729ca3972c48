"""Source partitions inside an executor: each is a lane that is read in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from penstock.clock import Clock
from penstock.errors import UsageError
from penstock.flow.batch import END_TIME, IDLE, MIN_TIME, Rows
from penstock.flow.connector import ConnectorContext, EndOfInput, Reader, Source
from penstock.flow.operator import Outlet


@dataclass(slots=True, eq=False)
class Lane:
    """One partition of one source step."""

    step: str
    partition: str
    number: int
    outlet: Outlet
    reader: Reader
    replayable: bool
    bounded: bool
    idle_after: float
    acknowledges: bool
    """Without checkpoints a batch is acknowledged as soon as it has been passed on."""
    heard: float
    """When (monotonic) it last gave a record."""
    ended: bool = False
    idle: bool = False
    retry_at: float = 0.0
    """Do not read before (monotonic)."""

    def read(self, limit: int, clock: Clock) -> int:
        """Read a batch and pass it on; the number of records. Sets `ended` at the end."""
        try:
            records = self.reader.read(limit)
        except EndOfInput:
            self.end()
            return 0
        now = clock.monotonic()
        if records:
            self.heard, self.idle = now, False
            self.outlet.send(Rows(records, lane=self.number, origin=clock.time_ns()))
            if self.acknowledges:
                self.reader.retained(self.reader.offset())
        else:
            wait = self.reader.next_at()
            self.retry_at = float("inf") if wait is None else wait
            if not self.bounded and not self.idle and now - self.heard > self.idle_after:
                self.idle = True
                self.outlet.advance(self.number, IDLE)
        return len(records)

    def end(self) -> None:
        """No further record will come."""
        if not self.ended:
            self.ended = True
            self.outlet.advance(self.number, END_TIME)


def open_lanes(
    step: str,
    source: Source,
    ctx: ConnectorContext,
    outlet: Outlet,
    first: int,
    offsets: dict[str, Any],
    idle_after: float,
) -> list[Lane]:
    """Open this executor's share of the partitions, each at its restored offset; opens their lanes downstream.

    Raises `ConnectorError` when one cannot be opened, and `UsageError` when a restored partition is gone.
    """
    partitions = list(source.partitions())
    gone = sorted(set(offsets) - set(partitions))
    if gone and source.bounded:
        raise UsageError(
            f"source {step!r}: the checkpoint names the partition {gone[0]!r}, which is not there any more",
            remedy="bring the input back, or start with another checkpoint directory",
        )
    lanes: list[Lane] = []
    for place in range(ctx.index, len(partitions), ctx.executors):
        name = partitions[place]
        reader = source.open(name, offsets.get(name), ctx)
        lane = Lane(
            step=step,
            partition=name,
            number=first + len(lanes),
            outlet=outlet,
            reader=reader,
            replayable=source.replayable,
            bounded=source.bounded,
            idle_after=idle_after,
            acknowledges=not ctx.checkpointed and type(reader).retained is not Reader.retained,
            heard=ctx.clock.monotonic(),
        )
        lanes.append(lane)
    for lane in lanes:
        outlet.advance(lane.number, MIN_TIME)
    return lanes
