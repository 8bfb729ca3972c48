"""Operators that act when event time has passed a point: the watermark of all their lanes, less the lateness allowed.

That point is the **horizon**. What ends at or before it is closed; a record that belongs only to closed things is
*late*: counted as `late`, and its value sent as it is to the second output.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, ClassVar, NamedTuple

from penstock.errors import FlowError
from penstock.flow.batch import END_TIME, IDLE, MIN_TIME, Batch, Columns, Rows
from penstock.flow.event_time import Tracker, own_lane
from penstock.flow.guard import without
from penstock.flow.operator import KeyedOperator, StepContext

__all__ = ["Due", "HorizonOperator", "split"]

CHUNK = 1024
"""Closed windows go out in batches of at most so many records."""


class Due(NamedTuple):
    """Results of what has been closed: parallel lists, in order of time."""

    keys: list[Hashable]
    values: list[Any]
    times: list[int]


class HorizonOperator(KeyedOperator):
    """Combines the watermarks of its lanes, closes what lies behind the horizon, and sends on one lane of its own.

    The late output promises nothing about its times until its end, because nothing can be promised of late records.
    """

    keyed_outputs: ClassVar[bool] = True
    """Whether results and late records go out with their keys."""

    def __init__(self, ctx: StepContext, late_ms: int) -> None:
        super().__init__(ctx)
        self.lane = own_lane(ctx.step)
        self.horizon = MIN_TIME
        self._late_ms = late_ms
        self._tracker = Tracker()
        self._heard: int | None = None

    def close_until(self, horizon: int) -> Due:
        """Forget what ends at or before `horizon`, and give its results."""
        raise NotImplementedError

    def advance(self, port: int, lane: int, watermark: int) -> None:
        self._hear(self._tracker.update(port, lane, watermark))

    def finish(self) -> None:
        self._hear(END_TIME)

    def arrived(self, port: int, batch: Batch, *, needs_time: bool = True) -> None:
        """To be called for every batch: its lane is idle no more. Raises `FlowError` when there is no key or time."""
        self._hear(self._tracker.wake(port, batch.lane))
        timed = batch.time if isinstance(batch, Columns) else batch.times
        keyed = batch.key if isinstance(batch, Columns) else batch.keys
        if timed is None and needs_time:
            raise FlowError(
                self.ctx.step,
                "its records carry no event time",
                remedy="name it with on=, for example on='ts' or on=lambda r: r.created",
                site=self.ctx.site or None,
            )
        if keyed is None:
            raise FlowError(
                self.ctx.step, "its records have no key", remedy="put a key_by before it", site=self.ctx.site or None
            )

    def send_late(self, late: Rows) -> None:
        """Count records that came too late, and pass them on."""
        if late.values:
            self.ctx.counters["late"] += len(late)
            if len(self.outs) > 1:
                keys = late.keys if self.keyed_outputs else None
                self.outs[1].send(Rows(late.values, keys, late.times, self.lane, late.origin))

    def dump_local(self) -> Any:
        return None if self.horizon == MIN_TIME else self.horizon

    def load_local(self, plain: list[Any]) -> None:
        """Barriers bring the same watermarks to every executor of a stage, so that the greatest is the one of all; it
        keeps what was closed before the snapshot closed, so that nothing is emitted twice."""
        self.horizon = max((entry for entry in plain if entry is not None), default=self.horizon)

    def give_up(self, goes: Callable[[Hashable], bool]) -> tuple[dict[Hashable, Any], Any]:
        states, _ = super().give_up(goes)
        return states, self.horizon

    def take_over(self, states: dict[Hashable, Any], progress: Any) -> None:
        """What has become due since it was given up is closed now."""
        own, horizon = self.state, self.horizon
        self.state = states
        if MIN_TIME < progress < horizon:
            self.horizon = progress
            self.restored()
            self.horizon = horizon
            self._send(self.close_until(horizon))
        own.update(self.state)
        self.state = own
        self.restored()

    def _hear(self, watermark: int) -> None:
        if watermark == self._heard or self._heard == END_TIME:
            return
        self._heard = watermark
        if watermark == IDLE:
            self.out.advance(self.lane, IDLE)
            return
        if watermark == MIN_TIME:
            for out in self.outs:
                out.advance(self.lane, MIN_TIME)
            return
        self.horizon = END_TIME if watermark == END_TIME else max(self.horizon, watermark - self._late_ms)
        self._send(self.close_until(self.horizon))
        self.out.advance(self.lane, self.horizon)
        if self.horizon == END_TIME:
            for out in self.outs[1:]:
                out.advance(self.lane, END_TIME)

    def _send(self, due: Due) -> None:
        for at in range(0, len(due.values), CHUNK):
            part = slice(at, at + CHUNK)
            keys = due.keys[part] if self.keyed_outputs else None
            self.out.send(Rows(due.values[part], keys, due.times[part], self.lane))


def split(rows: Rows, chosen: list[int]) -> tuple[Rows, Rows]:
    """The keyed and timed `rows` without the records at the indexes `chosen`, and those records."""
    keys, times = rows.keys or [], rows.times or []
    rest = rows.derive(without(rows.values, chosen), keys=without(keys, chosen), times=without(times, chosen))
    taken = rows.derive(
        [rows.values[i] for i in chosen], keys=[keys[i] for i in chosen], times=[times[i] for i in chosen]
    )
    return rest, taken
