"""One record in, any number out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, ClassVar

from penstock.flow.batch import Batch, Keyed, as_rows
from penstock.flow.graph import Step
from penstock.flow.guard import Applied, apply, without
from penstock.flow.operator import Operator, StepContext

__all__ = ["FlatMap", "apply_many"]


@dataclass(frozen=True, kw_only=True)
class FlatMap(Step):
    """Every item of `fn(record)`. Keys are dropped; every item has the event time of its record. A record whose items
    cannot all be made gives none of them."""

    kind: ClassVar[str] = "flat_map"
    keeps_times: ClassVar[bool] = True
    fn: Callable[[Any], Any]

    def operator(self, ctx: StepContext) -> Operator:
        return _FlatMapOperator(ctx, self)


class _FlatMapOperator(Operator):
    def __init__(self, ctx: StepContext, step: FlatMap) -> None:
        super().__init__(ctx)
        ctx.site = ctx.site or step.site
        self.fn = step.fn

    def process(self, port: int, batch: Batch) -> None:
        rows = as_rows(batch)
        parts, failed = apply_many(self.ctx, self.fn, rows.records())
        results = list(chain.from_iterable(parts))
        if not results:
            return
        times = None
        if rows.times is not None:
            times = list(chain.from_iterable(map(repeat, without(rows.times, failed), map(len, parts))))
        self.out.send(rows.derive(results, times=times))


_SOLID = frozenset({list, tuple})
"""What can be passed on without running code of the author."""


def apply_many(ctx: StepContext, fn: Callable[[Any], Any], records: list[Any]) -> Applied:
    """One list (or tuple) of items for each record, under the failure policy; the author's generators have run."""
    parts, failed = apply(ctx, fn, records)
    if set(map(type, parts)) <= _SOLID:
        return Applied(parts, failed)
    kept = without(records, failed)
    items, failed_late = apply(ctx, _items, parts, kept)
    if not failed_late:
        return Applied(items, failed)
    early = set(failed)
    places = [place for place in range(len(records)) if place not in early]
    return Applied(items, sorted(early.union(places[i] for i in failed_late)))


def _items(part: Any) -> Any:
    if isinstance(part, (str, bytes, Mapping, Keyed)):
        raise TypeError(
            f"the function returned one {type(part).__name__}, not many records; return a list of records, or use .map"
        )
    if part is None:
        raise TypeError("the function returned None; return a list (empty for no record), or use yield")
    return part if type(part) in _SOLID else list(part)
