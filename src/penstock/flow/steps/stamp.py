"""`stamp`: read each record's event time, and promise watermarks from what was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from penstock.flow.batch import END_TIME, IDLE, MIN_TIME, Batch, Columns, Rows
from penstock.flow.event_time import to_ms
from penstock.flow.fields import Field, column, pick
from penstock.flow.graph import Partitioning, Step
from penstock.flow.guard import apply, without
from penstock.flow.operator import Operator, StepContext

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Stamp", "StampOperator"]


@dataclass(frozen=True)
class Stamp(Step):
    """Give every record the event time that `on` names (a field, or a function of the value); see
    `penstock.flow.event_time.to_ms` for the kinds of time that are understood."""

    kind: ClassVar[str] = "stamp"

    on: Field = "ts"

    def operator(self, ctx: StepContext) -> StampOperator:
        ctx.site = ctx.site or self.site
        ctx.detail = f"on={self.on!r}" if isinstance(self.on, str) else ""
        return StampOperator(ctx, self.on)

    def partitioning(self, inputs: tuple[Partitioning, ...]) -> Partitioning:
        return inputs[0]


class StampOperator(Operator):
    """Fills in `times`. The watermark of a lane is the greatest time seen on it; earlier watermarks count no more."""

    def __init__(self, ctx: StepContext, on: Field) -> None:
        super().__init__(ctx)
        self._on = on
        self._seen: dict[int, int] = {}
        self._idle: set[int] = set()

    def process(self, port: int, batch: Batch) -> None:
        stamped = self._stamp_columns(batch) if isinstance(batch, Columns) else self._stamp_rows(batch)
        if stamped is None:
            return
        batch, top = stamped
        lane = batch.lane
        self.out.send(batch)
        if top > self._seen.get(lane, MIN_TIME) or lane in self._idle:
            self._idle.discard(lane)
            self._seen[lane] = top = max(top, self._seen.get(lane, MIN_TIME))
            self.out.advance(lane, top)

    def advance(self, port: int, lane: int, watermark: int) -> None:
        if watermark == IDLE:
            self._idle.add(lane)
        if watermark in (MIN_TIME, IDLE, END_TIME):
            self.out.advance(lane, watermark)

    def _stamp_rows(self, batch: Rows) -> tuple[Rows, int] | None:
        values, keys = batch.values, batch.keys
        try:
            found = column(self._on, values)
            times = found if set(map(type, found)) == {int} and abs(max(found, key=abs)) < 2**61 else None
            if times is None:
                times = list(map(to_ms, found))
        except Exception:
            # Something is wrong with at least one record: go again, one by one, under the flow's policy.
            records = batch.records() if keys is not None else None
            times, failed = apply(self.ctx, lambda value: to_ms(pick(self._on, value)), values, records)
            if not times:
                return None
            if failed:
                values = without(values, failed)
                keys = None if keys is None else without(keys, failed)
        return batch.derive(values, keys=keys, times=times), max(times)

    def _stamp_columns(self, batch: Columns) -> tuple[Batch, int] | None:
        """A column of integers stays columnar; other kinds of time are rows from here on."""
        on, frame = self._on, batch.frame
        if not isinstance(on, str) or on not in frame.columns:
            return self._stamp_rows(batch.rows())
        found = frame[on]
        if found.dtype.is_integer() and not found.null_count():
            top = _greatest(found)
            if top is not None:
                return Columns(frame, batch.key, on, batch.lane, batch.origin), top
        return self._stamp_rows(batch.rows())


def _greatest(times: pl.Series) -> int | None:
    """The greatest time, or `None` when there is one out of range (or none)."""
    low, high = times.min(), times.max()
    if isinstance(low, int) and isinstance(high, int) and low > -(2**61) and high < 2**61:
        return high
    return None
