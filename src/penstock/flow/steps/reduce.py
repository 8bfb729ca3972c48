"""Joining the records of a key two by two."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

from penstock.flow.batch import Batch, Keyed, as_rows
from penstock.flow.graph import Partitioning, Step
from penstock.flow.operator import Operator, StepContext
from penstock.flow.steps.emission import Emission, ResultOperator

__all__ = ["Reduce"]


@dataclass(frozen=True, kw_only=True)
class Reduce(Step):
    """`Keyed(key, fn(… fn(fn(v1, v2), v3) …))` of the values so far, for every record or (`final`) once per key at the
    end. The first value of a key stands for itself."""

    kind: ClassVar[str] = "reduce"
    keyed_input: ClassVar[bool] = True
    keeps_times: ClassVar[bool] = True
    fn: Callable[[Any, Any], Any]
    emit: Emission = "update"

    def operator(self, ctx: StepContext) -> Operator:
        return _ReduceOperator(ctx, self)

    def partitioning(self, inputs: tuple[Partitioning, ...]) -> Partitioning:
        return Partitioning.PARTITIONED


class _ReduceOperator(ResultOperator):
    def __init__(self, ctx: StepContext, step: Reduce) -> None:
        super().__init__(ctx, step.emit == "final")
        ctx.site = ctx.site or step.site
        self.fn = step.fn

    def process(self, port: int, batch: Batch) -> None:
        rows = as_rows(batch)
        keys: list[Hashable] = []
        results: list[Any] = []
        times: list[int] | None = None if rows.times is None else []
        done = 0
        while done < len(rows):
            done += self._run(rows.keys or [], rows.values, rows.times, done, keys, results, times)
        if results and not self.final:
            self.out.send(rows.derive(results, keys=keys, times=times))

    def _run(
        self,
        all_keys: list[Hashable],
        values: list[Any],
        all_times: list[int] | None,
        start: int,
        keys: list[Hashable],
        results: list[Any],
        times: list[int] | None,
    ) -> int:
        """Reduce from record `start` on, up to the end or past the first record that fails; how many were taken."""
        state, fn = self.state, self.fn
        before = len(results)
        coming = slice(start, None) if start else slice(None)
        try:
            for key, value in zip(all_keys[coming], values[coming], strict=True):
                state[key] = value = fn(state[key], value) if key in state else value
                results.append(value)
        except Exception as error:
            taken = len(results) - before
            at = start + taken
            self.ctx.on_error(self.ctx, Keyed(all_keys[at], values[at]), error)
            skipped = 1
        else:
            taken, skipped = len(results) - before, 0
        keys += all_keys[start : start + taken]
        if times is not None and all_times is not None:
            times += all_times[start : start + taken]
        return taken + skipped
