"""Keeping some records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress
from typing import Any, ClassVar

from penstock.flow.batch import Batch, as_rows
from penstock.flow.graph import Partitioning, Step
from penstock.flow.guard import choose
from penstock.flow.operator import Operator, StepContext

__all__ = ["Filter"]


@dataclass(frozen=True, kw_only=True)
class Filter(Step):
    """The records for which `fn(record)` is true, with their keys and times."""

    kind: ClassVar[str] = "filter"
    keeps_times: ClassVar[bool] = True
    fn: Callable[[Any], Any]

    def operator(self, ctx: StepContext) -> Operator:
        return _FilterOperator(ctx, self)

    def partitioning(self, inputs: tuple[Partitioning, ...]) -> Partitioning:
        return inputs[0]


class _FilterOperator(Operator):
    def __init__(self, ctx: StepContext, step: Filter) -> None:
        super().__init__(ctx)
        ctx.site = ctx.site or step.site
        self.fn = step.fn

    def process(self, port: int, batch: Batch) -> None:
        rows = as_rows(batch)
        flags = choose(self.ctx, self.fn, rows.records())
        values = list(compress(rows.values, flags))
        if len(values) == len(rows.values):
            self.out.send(rows)
        elif values:
            keys = None if rows.keys is None else list(compress(rows.keys, flags))
            times = None if rows.times is None else list(compress(rows.times, flags))
            self.out.send(rows.derive(values, keys=keys, times=times))
