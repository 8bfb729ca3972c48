"""The two halves of a MapReduce: map and combine beside the source, reduce after the shuffle."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Protocol

from penstock.flow.batch import Batch, Keyed, as_rows
from penstock.flow.graph import Partitioning, Step
from penstock.flow.guard import apply, without
from penstock.flow.operator import Operator, StepContext
from penstock.flow.steps.emission import ResultOperator
from penstock.flow.steps.flat_map import apply_many

__all__ = ["Combine", "MapPairs", "ReducePairs", "Reducing"]


class Reducing(Protocol):
    """What the steps need of `penstock.flow.mapreduce.MapReduce`."""

    def map(self, record: Any) -> Iterable[tuple[Hashable, Any]]:
        """(key, value) pairs of one record."""
        ...

    def reduce(self, key: Any, values: list[Any]) -> Any:
        """The result of one key."""
        ...


Combine = Callable[[Any, list[Any]], Any]
"""`combine(key, values)`: one value in place of several."""


@dataclass(frozen=True, kw_only=True)
class MapPairs(Step):
    """`Keyed(key, value)` for every pair of `program.map(record)`; with `combine`, one pair per key and batch."""

    kind: ClassVar[str] = "map_pairs"
    program: Reducing
    combine: Combine | None = None

    def operator(self, ctx: StepContext) -> Operator:
        return _MapPairsOperator(ctx, self)

    def partitioning(self, inputs: tuple[Partitioning, ...]) -> Partitioning:
        return Partitioning.KEYED


@dataclass(frozen=True, kw_only=True)
class ReducePairs(Step):
    """`Keyed(key, program.reduce(key, values))`: once per key when a bounded input has ended; else for every batch, one
    for each key that it changed. State: with `combine` one value per key, else all values."""

    kind: ClassVar[str] = "reduce_pairs"
    keyed_input: ClassVar[bool] = True
    program: Reducing
    combine: Combine | None = None

    def operator(self, ctx: StepContext) -> Operator:
        return _ReducePairsOperator(ctx, self)

    def partitioning(self, inputs: tuple[Partitioning, ...]) -> Partitioning:
        return Partitioning.PARTITIONED


def _gathered(keys: Iterable[Hashable], values: Iterable[Any]) -> dict[Hashable, list[Any]]:
    groups: dict[Hashable, list[Any]] = {}
    for key, value in zip(keys, values, strict=True):
        if key in groups:
            groups[key].append(value)
        else:
            groups[key] = [value]
    return groups


def _combined(ctx: StepContext, combine: Combine, groups: dict[Hashable, list[Any]]) -> dict[Hashable, Any]:
    """One value per key; a key whose values cannot be combined is left to the policy."""
    records: list[Any] = [Keyed(key, values) for key, values in groups.items()]
    results, failed = apply(ctx, lambda group: combine(group[0], group[1]), records)
    return dict(zip(without(list(groups), failed), results, strict=True))


class _MapPairsOperator(Operator):
    def __init__(self, ctx: StepContext, step: MapPairs) -> None:
        super().__init__(ctx)
        ctx.site = ctx.site or step.site
        self.map, self.combine = step.program.map, step.combine

    def process(self, port: int, batch: Batch) -> None:
        rows = as_rows(batch)
        records = rows.records()
        parts, failed = apply_many(self.ctx, self.map, records)
        pairs = list(chain.from_iterable(parts))
        if not _are_pairs(pairs):
            parts, _ = apply(self.ctx, _pairs_only, parts, without(records, failed))
            pairs = list(chain.from_iterable(parts))
        if not pairs:
            return
        keys, values = map(list, zip(*pairs, strict=True))
        if self.combine is not None:
            partials = _combined(self.ctx, self.combine, _gathered(keys, values))
            keys, values = list(partials), list(partials.values())
        if keys:
            self.out.send(rows.derive(values, keys=keys))


def _are_pairs(pairs: list[Any]) -> bool:
    try:
        return all(type(pair) is tuple and len(pair) == 2 and (hash(pair[0]) or True) for pair in pairs)
    except TypeError:
        return False


def _pairs_only(part: Any) -> Any:
    for pair in part:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(f"map must yield (key, value) pairs, not {pair!r:.80}")
        hash(pair[0])
    return part


class _ReducePairsOperator(ResultOperator):
    """State of a key: the list of its values; with `combine` at most one after each batch."""

    def __init__(self, ctx: StepContext, step: ReducePairs) -> None:
        super().__init__(ctx, final=ctx.bounded)
        ctx.site = ctx.site or step.site
        self.program, self.combine = step.program, step.combine

    def process(self, port: int, batch: Batch) -> None:
        rows = as_rows(batch)
        groups = _gathered(rows.keys or [], rows.values)
        state = self.state
        if self.combine is None:
            for key, values in groups.items():
                state.setdefault(key, []).extend(values)
        else:
            merged = {key: [*state[key], *values] if key in state else values for key, values in groups.items()}
            several = {key: values for key, values in merged.items() if len(values) > 1}
            for key, value in _combined(self.ctx, self.combine, several).items():
                state[key] = [value]
            state.update((key, values) for key, values in merged.items() if len(values) == 1)
        if not self.final:
            self._send([key for key in groups if key in state], rows.lane, rows.origin)

    def _send(self, keys: list[Hashable], lane: int, origin: int = 0) -> None:
        # `reduce` gets a copy: what it does with its list must not change the state.
        records: list[Any] = [Keyed(key, list(self.state[key])) for key in keys]
        reduce = self.program.reduce
        results, failed = apply(self.ctx, lambda group: reduce(group[0], group[1]), records)
        self.send_results(without(keys, failed), results, lane, origin)

    def view(self, value: Any) -> Any:
        """The values (or the one partial value) that `reduce` would be given."""
        return value
