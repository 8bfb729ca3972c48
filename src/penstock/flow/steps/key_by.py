"""Giving every record a key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import is_
from typing import Any, ClassVar

from penstock.flow.batch import Batch, as_rows
from penstock.flow.fields import Field, getter
from penstock.flow.graph import Partitioning, Step
from penstock.flow.guard import apply, is_identity, without
from penstock.flow.operator import Operator, StepContext

__all__ = ["KeyBy", "field_of"]


@dataclass(frozen=True, kw_only=True)
class KeyBy(Step):
    """Record r becomes `Keyed(key(r), r)`; `key` is a function or the name of a field. Event times stay."""

    kind: ClassVar[str] = "key_by"
    keeps_times: ClassVar[bool] = True
    key: Field

    def operator(self, ctx: StepContext) -> Operator:
        return _KeyByOperator(ctx, self)

    def partitioning(self, inputs: tuple[Partitioning, ...]) -> Partitioning:
        return Partitioning.KEYED


_HASHABLE = frozenset({str, int, float, bool, bytes, type(None)})


class _KeyByOperator(Operator):
    def __init__(self, ctx: StepContext, step: KeyBy) -> None:
        super().__init__(ctx)
        ctx.site = ctx.site or step.site
        self.fn = field_of(step.key)
        self.identity = is_identity(self.fn)

    def process(self, port: int, batch: Batch) -> None:
        rows = as_rows(batch)
        values, times = rows.records(), rows.times
        if self.identity and set(map(type, values)) <= _HASHABLE:
            self.out.send(rows.derive(values, keys=values, times=times))
            return
        keys, failed = apply(self.ctx, self.fn, values)
        values, times = without(values, failed), None if times is None else without(times, failed)
        if not set(map(type, keys)) <= _HASHABLE:
            _, failed = apply(self.ctx, hash, keys, values)
            keys, values = without(keys, failed), without(values, failed)
            times = None if times is None else without(times, failed)
        if keys:
            same = keys[0] is values[0] and all(map(is_, keys, values))
            self.out.send(rows.derive(keys if same else values, keys=keys, times=times))


def field_of(field: Field) -> Callable[[Any], Any]:
    """The function that reads a field given by name; a function is given back as it is."""
    return getter(field) if isinstance(field, str) else field
