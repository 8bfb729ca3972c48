"""Each thing once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

from penstock.flow.batch import Batch, as_rows
from penstock.flow.fields import Field
from penstock.flow.graph import Partitioning, Step
from penstock.flow.guard import apply, without
from penstock.flow.operator import KeyedOperator, Operator, StepContext
from penstock.flow.steps.key_by import field_of

__all__ = ["Distinct"]


@dataclass(frozen=True, kw_only=True)
class Distinct(Step):
    """The first record of each key (`per_key` false: keys are hidden, records leave without them), or the first record
    of each `by(value)` within a key. State: one entry per distinct thing, kept for ever."""

    kind: ClassVar[str] = "distinct"
    keyed_input: ClassVar[bool] = True
    keeps_times: ClassVar[bool] = True
    by: Field | None = None
    per_key: bool = True

    def operator(self, ctx: StepContext) -> Operator:
        return _DistinctPerKey(ctx, self) if self.per_key else _FirstOfKey(ctx)

    def partitioning(self, inputs: tuple[Partitioning, ...]) -> Partitioning:
        return Partitioning.PARTITIONED if self.per_key else Partitioning.NONE


class _FirstOfKey(KeyedOperator):
    """The hidden key is the thing itself."""

    def process(self, port: int, batch: Batch) -> None:
        rows = as_rows(batch)
        state = self.state
        places: list[int] = []
        for place, key in enumerate(rows.keys or []):
            if key not in state:
                state[key] = True
                places.append(place)
        if places:
            times = None if rows.times is None else [rows.times[i] for i in places]
            self.out.send(rows.derive([rows.values[i] for i in places], times=times))


class _DistinctPerKey(KeyedOperator):
    def __init__(self, ctx: StepContext, step: Distinct) -> None:
        super().__init__(ctx)
        ctx.site = ctx.site or step.site
        self.by = None if step.by is None else field_of(step.by)

    def process(self, port: int, batch: Batch) -> None:
        rows = as_rows(batch)
        keys, values, times = rows.keys or [], rows.values, rows.times
        things = values
        for fn in (self.by, hash):
            if fn is None:
                continue
            results, failed = apply(self.ctx, fn, things, values)
            keys, values, times = without(keys, failed), without(values, failed), times and without(times, failed)
            things = without(things, failed) if fn is hash else results
        places = [i for i, (key, thing) in enumerate(zip(keys, things, strict=True)) if self._is_new(key, thing)]
        if places:
            times = None if times is None else [times[i] for i in places]
            self.out.send(rows.derive([values[i] for i in places], keys=[keys[i] for i in places], times=times))

    def _is_new(self, key: Hashable, thing: Hashable) -> bool:
        seen = self.state.setdefault(key, set())
        if thing in seen:
            return False
        seen.add(thing)
        return True
