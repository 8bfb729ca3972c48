"""Counting records per key."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from penstock.flow.batch import Batch, as_rows
from penstock.flow.graph import Partitioning, Step
from penstock.flow.guard import without
from penstock.flow.operator import Operator, StepContext
from penstock.flow.steps.emission import Emission, ResultOperator

__all__ = ["Count"]


@dataclass(frozen=True, kw_only=True)
class Count(Step):
    """`Keyed(key, number of records so far)`, for every record or (`final`) once per key at the end."""

    kind: ClassVar[str] = "count"
    keyed_input: ClassVar[bool] = True
    needs_values: ClassVar[bool] = False
    keeps_times: ClassVar[bool] = True
    emit: Emission = "update"

    def operator(self, ctx: StepContext) -> Operator:
        ctx.site = ctx.site or self.site
        return _CountOperator(ctx, self.emit == "final")

    def partitioning(self, inputs: tuple[Partitioning, ...]) -> Partitioning:
        return Partitioning.PARTITIONED


class _CountOperator(ResultOperator):
    def process(self, port: int, batch: Batch) -> None:
        rows = as_rows(batch)
        keys = rows.keys or []
        counts: list[int] = []
        failed: list[int] = []
        remaining = iter(keys)
        while True:
            try:
                self._count(remaining, counts.append)
                break
            except TypeError as error:  # a key that cannot be hashed
                failed.append(len(counts) + len(failed))
                self.ctx.on_error(self.ctx, keys[failed[-1]], error)
        if counts and not self.final:
            times = None if rows.times is None else without(rows.times, failed)
            self.out.send(rows.derive(counts, keys=without(keys, failed), times=times))

    def _count(self, keys: Iterator[Hashable], append: Callable[[int], None]) -> None:
        state = self.state
        for key in keys:
            # A miss is rare, and a `try` that does not raise costs nothing: faster than `get` with a default.
            try:
                number = state[key] + 1
            except KeyError:
                number = 1
            state[key] = number
            append(number)
