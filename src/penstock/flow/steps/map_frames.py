"""Whole batches as Polars frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from penstock.flow.batch import Batch, Columns, Rows, as_rows
from penstock.flow.graph import Step
from penstock.flow.operator import Operator, StepContext

if TYPE_CHECKING:
    import polars as pl

__all__ = ["MapFrames", "frame_of"]


@dataclass(frozen=True, kw_only=True)
class MapFrames(Step):
    """`fn(frame)` in place of each batch: a `polars.DataFrame` in, another out, with any number of rows. Records that
    are dicts, Structs or dataclasses become columns by name; other values a column `value`. Where batches begin and end
    means nothing, so `fn` must treat every row for itself. Keys are dropped, event times unless their column stays."""

    kind: ClassVar[str] = "map_frames"
    fn: Callable[[Any], Any]

    def operator(self, ctx: StepContext) -> Operator:
        return _MapFramesOperator(ctx, self)


class _MapFramesOperator(Operator):
    def __init__(self, ctx: StepContext, step: MapFrames) -> None:
        super().__init__(ctx)
        ctx.site = ctx.site or step.site
        self.fn = step.fn

    def process(self, port: int, batch: Batch) -> None:
        import polars as pl

        try:
            frame = batch.frame if isinstance(batch, Columns) else frame_of(batch)
            result = self.fn(frame)
            if not isinstance(result, pl.DataFrame):
                raise TypeError(f"the function must return a polars.DataFrame, not {type(result).__name__}")
        except Exception as error:
            for record in as_rows(batch).records():
                self.ctx.on_error(self.ctx, record, error)
            return
        time = batch.time if isinstance(batch, Columns) and batch.time in result.columns else None
        if result.height:
            self.out.send(Columns(result, time=time, lane=batch.lane, origin=batch.origin))


def frame_of(rows: Rows) -> pl.DataFrame:
    """The records of a batch as a frame; of a keyed batch with the columns `key` and `value` around plain values."""
    import polars as pl

    values = rows.values
    first = values[0]
    if isinstance(first, msgspec.Struct):
        values = [msgspec.structs.asdict(value) for value in values]
    elif dataclasses.is_dataclass(first):
        values = [vars(value) for value in values]
    elif not isinstance(first, Mapping):
        columns = {"value": values} if rows.keys is None else {"key": rows.keys, "value": values}
        return pl.DataFrame(columns, strict=False)
    return pl.from_dicts(values, infer_schema_length=None)
