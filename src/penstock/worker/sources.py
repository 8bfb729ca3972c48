"""Source partitions inside an executor: each is a lane that is read in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from penstock.clock import Clock
from penstock.errors import UsageError
from penstock.flow.batch import END_TIME, IDLE, MIN_TIME, Rows
from penstock.flow.connector import ConnectorContext, EndOfInput, Reader, Source
from penstock.flow.operator import Outlet
from penstock.worker.sinks import naming


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
    ended: bool = False
    idle: bool = False
    idle_at: float = float("inf")
    """When (monotonic) it counts as idle, unless a record comes; set by the first read that finds nothing."""
    retry_at: float = 0.0
    """Do not read before (monotonic)."""

    def read(self, limit: int, clock: Clock) -> int:
        """Read a batch and pass it on; the number of records. Sets `ended` at the end."""
        try:
            with naming(self.step):
                records = self.reader.read(limit)
        except EndOfInput:
            self.end()
            return 0
        if records:
            self.idle, self.idle_at = False, float("inf")
            self.outlet.send(Rows(records, lane=self.number, origin=clock.time_ns()))
            if self.acknowledges:
                self.reader.retained(self.reader.offset())
        else:
            self._nothing(clock.monotonic())
        return len(records)

    def position(self) -> Any:
        """The offset after the last record that was read."""
        return self.reader.offset()

    def _nothing(self, now: float) -> None:
        """There is no record: when to look again, and whether event time goes on without this lane."""
        wait = self.reader.next_at()
        self.retry_at = float("inf") if wait is None else wait
        if self.bounded or self.idle:
            return
        self.idle_at = min(self.idle_at, now + self.idle_after)
        if now >= self.idle_at:
            self.idle, self.idle_at = True, float("inf")
            self.outlet.advance(self.number, IDLE)
        # A reader that only a wake-up makes readable must still be looked at when its silence has lasted long enough.
        self.retry_at = min(self.retry_at, self.idle_at)

    def drain(self, clock: Clock) -> int:
        """Reading stops. What was pushed in and accepted, and nobody can send again, is still taken."""
        waiting = 0 if self.replayable or self.ended else self.reader.lag() or 0
        taken = 0
        while taken < waiting and not self.ended:
            count = self.read(waiting - taken, clock)
            if not count:
                break
            taken += count
        return taken

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
    partitions = list(source.shares(ctx.executors))
    gone = sorted(set(offsets) - set(partitions))
    if gone and source.bounded:
        raise UsageError(
            f"source {step!r}: the checkpoint names the partition {gone[0]!r}, which is not there any more",
            remedy="bring the input back, or start with another checkpoint directory",
        )
    lanes: list[Lane] = []
    for place in range(ctx.index, len(partitions), ctx.executors):
        name = partitions[place]
        reader = source.open(name, source.restored(name, offsets, ctx.executors), ctx)
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
        )
        lanes.append(lane)
    for lane in lanes:
        outlet.advance(lane.number, MIN_TIME)
    return lanes
