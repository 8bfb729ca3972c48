"""Two streams out of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress
from operator import not_
from typing import Any, ClassVar

from penstock.flow.batch import Batch, Rows, as_rows
from penstock.flow.graph import Partitioning, Step
from penstock.flow.guard import choose, without
from penstock.flow.operator import Operator, StepContext

__all__ = ["Branch"]


@dataclass(frozen=True, kw_only=True)
class Branch(Step):
    """Records for which `fn(record)` is true go to the first output, the others to the second; keys and times stay."""

    kind: ClassVar[str] = "branch"
    outputs: ClassVar[tuple[str, ...]] = ("true", "false")
    keeps_times: ClassVar[bool] = True
    fn: Callable[[Any], Any]

    def operator(self, ctx: StepContext) -> Operator:
        return _BranchOperator(ctx, self)

    def partitioning(self, inputs: tuple[Partitioning, ...]) -> Partitioning:
        return inputs[0]


class _BranchOperator(Operator):
    def __init__(self, ctx: StepContext, step: Branch) -> None:
        super().__init__(ctx)
        ctx.site = ctx.site or step.site
        self.fn = step.fn

    def process(self, port: int, batch: Batch) -> None:
        rows = as_rows(batch)
        failed: list[int] = []
        flags = choose(self.ctx, self.fn, rows.records(), failed)
        if failed:
            keys = None if rows.keys is None else without(rows.keys, failed)
            times = None if rows.times is None else without(rows.times, failed)
            rows = rows.derive(without(rows.values, failed), keys=keys, times=times)
            flags = without(flags, failed)
        for out, chosen in zip(self.outs, (flags, list(map(not_, flags))), strict=True):
            part = _part(rows, chosen)
            if part.values:
                out.send(part)


def _part(rows: Rows, flags: list[Any]) -> Rows:
    keys = None if rows.keys is None else list(compress(rows.keys, flags))
    times = None if rows.times is None else list(compress(rows.times, flags))
    return rows.derive(list(compress(rows.values, flags)), keys=keys, times=times)
