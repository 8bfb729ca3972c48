"""One record in, one record out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from penstock.flow.batch import Batch, as_rows
from penstock.flow.graph import Step
from penstock.flow.guard import apply, without
from penstock.flow.operator import Operator, StepContext

__all__ = ["Map"]


@dataclass(frozen=True, kw_only=True)
class Map(Step):
    """`fn(record)` in place of each record. Keys are dropped (the function may have changed what they stood for); event
    times stay."""

    kind: ClassVar[str] = "map"
    keeps_times: ClassVar[bool] = True
    fn: Callable[[Any], Any]

    def operator(self, ctx: StepContext) -> Operator:
        return _MapOperator(ctx, self)


class _MapOperator(Operator):
    def __init__(self, ctx: StepContext, step: Map) -> None:
        super().__init__(ctx)
        ctx.site = ctx.site or step.site
        self.fn = step.fn

    def process(self, port: int, batch: Batch) -> None:
        rows = as_rows(batch)
        results, failed = apply(self.ctx, self.fn, rows.records())
        if results:
            times = None if rows.times is None else without(rows.times, failed)
            self.out.send(rows.derive(results, times=times))
