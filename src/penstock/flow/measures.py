"""The fields that a window's aggregates look at, read once per batch and checked before any state is touched."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from penstock.flow.accumulators import Aggregate, Count, Needs
from penstock.flow.batch import Rows
from penstock.flow.fields import Field, column, pick
from penstock.flow.guard import apply, without
from penstock.flow.operator import StepContext

__all__ = ["Measured", "Measures"]

_PLAIN: dict[Needs, set[type]] = {
    Needs.ORDER: {int, float, str, type(None)},
    Needs.NUMBERS: {int, float, type(None)},
}
_ORDERED = (Real, str, bytes, dt.date, dt.time, dt.timedelta)


@dataclass(slots=True)
class Measured:
    """The readable records of a batch and their fields: per field a column parallel to `rows`, with `None` where the
    value is missing, which happens only in columns with `gaps`."""

    measures: Measures
    rows: Rows
    columns: list[list[Any]]
    gaps: list[bool]

    def add(self, accs: list[Any], members: list[int]) -> None:
        """Add the records at the indexes `members` to one accumulator per aggregate."""
        measures = self.measures
        times: Sequence[int] = ()
        if measures.timed:
            every = self.rows.times or []
            times = [every[i] for i in members]
        cells = [[cells[i] for i in members] for cells in self.columns]
        for at, aggregate in enumerate(measures.aggregates):
            source = measures.sources[at]
            if source is None:
                accs[at] = aggregate.add(accs[at], members, ())
            elif self.gaps[source]:
                kept = [i for i, cell in enumerate(cells[source]) if cell is not None]
                own_times = [times[i] for i in kept] if aggregate.timed else ()
                accs[at] = aggregate.add(accs[at], [cells[source][i] for i in kept], own_times)
            else:
                accs[at] = aggregate.add(accs[at], cells[source], times)


class Measures:
    """What has to be read for some aggregates."""

    def __init__(self, aggregates: Sequence[Aggregate]) -> None:
        self.aggregates = tuple(aggregates)
        needs: dict[Field | None, Needs] = {}
        for aggregate in self.aggregates:
            if not isinstance(aggregate, Count):
                needs[aggregate.field] = max(needs.get(aggregate.field, Needs.ANYTHING), aggregate.needs)
        self._needs = needs
        places = {field: i for i, field in enumerate(needs)}
        self.sources = [None if isinstance(a, Count) else places[a.field] for a in self.aggregates]
        """For each aggregate the index of its column; `None` when it reads none."""
        self.timed = any(aggregate.timed for aggregate in self.aggregates)

    def accumulators(self) -> list[Any]:
        """Fresh accumulators."""
        return [aggregate.init() for aggregate in self.aggregates]

    def merge(self, accs: list[Any], others: list[Any]) -> None:
        """Merge `others` into `accs`."""
        for at, aggregate in enumerate(self.aggregates):
            accs[at] = aggregate.merge(accs[at], others[at])

    def dump(self, accs: list[Any]) -> list[Any]:
        """The accumulators for the codec."""
        return [aggregate.dump(acc) for aggregate, acc in zip(self.aggregates, accs, strict=True)]

    def load(self, plain: list[Any]) -> list[Any]:
        """The inverse of `dump`."""
        return [aggregate.load(acc) for aggregate, acc in zip(self.aggregates, plain, strict=True)]

    def read(self, ctx: StepContext, rows: Rows) -> Measured:
        """Read all fields. Records that cannot be read meet the flow's failure policy and are left out."""
        try:
            columns, gaps = [], []
            for field, needs in self._needs.items():
                found, has_gaps = _clean(rows.values if field is None else column(field, rows.values), needs)
                columns.append(found)
                gaps.append(has_gaps)
        except Exception:
            return self._read_each(ctx, rows)
        return Measured(self, rows, columns, gaps)

    def _read_each(self, ctx: StepContext, rows: Rows) -> Measured:
        """As `read`, slowly, to find the records that are at fault."""
        wanted = list(self._needs.items())

        def cells(value: Any) -> list[Any]:
            return [_cell(value if field is None else pick(field, value), needs, field) for field, needs in wanted]

        table, failed = apply(ctx, cells, rows.values, rows.records())
        keys, times = rows.keys, rows.times
        kept = rows.derive(
            without(rows.values, failed),
            keys=None if keys is None else without(keys, failed),
            times=None if times is None else without(times, failed),
        )
        columns = [list(cells) for cells in zip(*table, strict=True)] if table else [[] for _ in wanted]
        return Measured(self, kept, columns, [True] * len(wanted))


def _clean(found: list[Any], needs: Needs) -> tuple[list[Any], bool]:
    """The column with `None` for everything missing, and whether there is any. Raises for what cannot be taken."""
    kinds = set(map(type, found))
    if needs and not kinds <= _PLAIN[needs]:
        return [_cell(value, needs, None) for value in found], True
    if float in kinds and (not kinds <= _PLAIN[Needs.ORDER] or [value for value in found if value != value]):
        return [None if type(value) is float and value != value else value for value in found], True
    return found, type(None) in kinds


def _cell(value: Any, needs: Needs, field: Field | None) -> Any:
    if value is None or (isinstance(value, float) and value != value):
        return None
    if needs is Needs.NUMBERS:
        if isinstance(value, Integral):
            return int(value)
        if isinstance(value, Real):
            return float(value)
    elif needs is Needs.ANYTHING or _has_order(value):
        return value
    what = f"field {field!r}" if isinstance(field, str) else "the aggregated value"
    wanted = "a number" if needs is Needs.NUMBERS else "a number, a string, a date or time, or a tuple of them"
    raise TypeError(f"{what} is {value!r:.80} of type {type(value).__name__}; the aggregate needs {wanted}")


def _has_order(value: Any) -> bool:
    return isinstance(value, _ORDERED) or (isinstance(value, (tuple, list)) and all(map(_has_order, value)))
