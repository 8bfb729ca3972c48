"""How the aggregates of windows are computed: frozen descriptions that work on plain accumulators.

Every accumulator is a value that the codec can write, its result depends on the set of records alone and not on their
order, and two accumulators merge. Missing values (`None`, and the float NaN) are left out by every aggregate of a
field, as in SQL; an aggregate that saw no value at all gives `None` (a sum 0, a count 0).
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar

from penstock.flow.fields import Field

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Aggregate", "Count", "First", "Last", "Max", "Mean", "Min", "Needs", "Sum", "rank"]


class Needs(IntEnum):
    """Which values an aggregate can take; a stricter kind has the larger number."""

    ANYTHING = 0
    ORDER = 1
    """Numbers, strings, bytes, dates and times, and tuples of them."""
    NUMBERS = 2


@dataclass(frozen=True)
class Aggregate:
    """One aggregate of a window. `add` and `merge` may change and return their first argument, never the second."""

    needs: ClassVar[Needs] = Needs.ANYTHING
    timed: ClassVar[bool] = False
    """Whether `add` looks at the event times."""

    field: Field | None = None
    """What is aggregated; `None` means the whole value."""

    def init(self) -> Any:
        """The accumulator of no records."""
        raise NotImplementedError

    def add(self, acc: Any, values: list[Any], times: Sequence[int]) -> Any:
        """The accumulator with more records. `values` hold nothing that is missing; `times` are parallel if `timed`."""
        raise NotImplementedError

    def merge(self, acc: Any, other: Any) -> Any:
        """One accumulator for the records of both."""
        raise NotImplementedError

    def result(self, acc: Any) -> Any:
        """What the author sees."""
        raise NotImplementedError

    def dump(self, acc: Any) -> Any:
        """The accumulator as something the codec can write."""
        return acc

    def load(self, plain: Any) -> Any:
        """The inverse of `dump`."""
        return plain

    def partials(self, column: pl.Expr) -> list[pl.Expr] | None:
        """Polars expressions that aggregate a group of rows for `absorb`, or `None` when there are none."""
        return None

    def absorb(self, acc: Any, parts: Sequence[Any]) -> Any:
        """The accumulator with the results of `partials` for one group."""
        raise NotImplementedError


@dataclass(frozen=True)
class Count(Aggregate):
    """How many records."""

    def init(self) -> int:
        return 0

    def add(self, acc: int, values: list[Any], times: Sequence[int]) -> int:
        return acc + len(values)

    def merge(self, acc: int, other: int) -> int:
        return acc + other

    def result(self, acc: int) -> int:
        return acc


@dataclass(frozen=True)
class Sum(Aggregate):
    """The sum: exact for ints; for floats the exact sum rounded once, so that order does not matter.

    The accumulator is `[sum of ints, parts …]`, where the float parts add up exactly to the sum of the floats (an
    expansion as in Shewchuk, "Adaptive precision floating-point arithmetic", 1997); it is `[int]` without floats.
    """

    needs: ClassVar[Needs] = Needs.NUMBERS

    def init(self) -> list[Any]:
        return [0]

    def add(self, acc: list[Any], values: list[Any], times: Sequence[int]) -> list[Any]:
        kinds = set(map(type, values))
        if float not in kinds:
            acc[0] += sum(values)
            return acc
        if len(kinds) > 1:
            acc[0] += sum(value for value in values if type(value) is not float)
            values = [value for value in values if type(value) is float]
        acc[1:] = _expansion(acc[1:] + values)
        return acc

    def merge(self, acc: list[Any], other: list[Any]) -> list[Any]:
        acc[0] += other[0]
        if len(other) > 1:
            acc[1:] = _expansion(acc[1:] + other[1:])
        return acc

    def result(self, acc: list[Any]) -> Any:
        return acc[0] if len(acc) == 1 else _rounded(acc[1:], acc[0])

    def partials(self, column: pl.Expr) -> list[pl.Expr]:
        return [column.sum(), column.count()]

    def absorb(self, acc: list[Any], parts: Sequence[Any]) -> list[Any]:
        return self.add(acc, [parts[0]], ()) if parts[1] else acc


def _expansion(floats: list[float]) -> list[float]:
    """A few floats with exactly the same sum. Infinities (and a sum too large for a float) give one infinity or NaN."""
    fsum = math.fsum
    try:
        part = fsum(floats)
        parts = [part]
        if part - part != 0.0:
            return parts
        rest = floats.copy()
        while True:
            rest.append(-part)
            part = fsum(rest)
            if not part:
                return parts
            parts.append(part)
    except (OverflowError, ValueError):
        return [sum(floats)]


def _rounded(floats: list[float], whole: int) -> float:
    """The float next to the exact sum of `floats` and `whole`."""
    try:
        high = float(whole)
        return math.fsum([*floats, high, float(whole - int(high))])
    except (OverflowError, ValueError):
        return sum(floats) + (math.inf if whole > 0 else -math.inf) if abs(whole) > 2**1023 else sum(floats)


@dataclass(frozen=True)
class Mean(Sum):
    """The arithmetic mean, from the exact sum. The accumulator is that of `Sum` with the count in front."""

    def init(self) -> list[Any]:
        return [0, [0]]

    def add(self, acc: list[Any], values: list[Any], times: Sequence[int]) -> list[Any]:
        acc[0] += len(values)
        super().add(acc[1], values, times)
        return acc

    def merge(self, acc: list[Any], other: list[Any]) -> list[Any]:
        acc[0] += other[0]
        super().merge(acc[1], other[1])
        return acc

    def result(self, acc: list[Any]) -> float | None:
        if not acc[0]:
            return None
        mean: float = super().result(acc[1]) / acc[0]
        return mean

    def absorb(self, acc: list[Any], parts: Sequence[Any]) -> list[Any]:
        if parts[1]:
            acc[0] += parts[1]
            super().add(acc[1], [parts[0]], ())
        return acc


@dataclass(frozen=True)
class Min(Aggregate):
    """The least value. Values of different kinds are ordered by `rank`. The accumulator is `None` or the value."""

    needs: ClassVar[Needs] = Needs.ORDER

    def init(self) -> Any:
        return None

    def add(self, acc: Any, values: list[Any], times: Sequence[int]) -> Any:
        candidates = values if acc is None else [acc, *values]
        try:
            return min(candidates, default=None)
        except TypeError:
            return min(candidates, key=rank)

    def merge(self, acc: Any, other: Any) -> Any:
        return acc if other is None else self.add(acc, [other], ())

    def result(self, acc: Any) -> Any:
        return acc

    def partials(self, column: pl.Expr) -> list[pl.Expr]:
        return [column.min()]

    def absorb(self, acc: Any, parts: Sequence[Any]) -> Any:
        return self.merge(acc, parts[0])


@dataclass(frozen=True)
class Max(Min):
    """The greatest value, as `Min`."""

    def add(self, acc: Any, values: list[Any], times: Sequence[int]) -> Any:
        candidates = values if acc is None else [acc, *values]
        try:
            return max(candidates, default=None)
        except TypeError:
            return max(candidates, key=rank)

    def partials(self, column: pl.Expr) -> list[pl.Expr]:
        return [column.max()]


@dataclass(frozen=True)
class First(Aggregate):
    """The value with the least event time; of several at that time the one of least `rank`.

    The accumulator is `None` or `[time, value]`."""

    timed: ClassVar[bool] = True

    def init(self) -> list[Any] | None:
        return None

    def add(self, acc: list[Any] | None, values: list[Any], times: Sequence[int]) -> list[Any] | None:
        if not values:
            return acc
        time = min(times)
        if acc is not None:
            if acc[0] < time:
                return acc
            if acc[0] == time:
                values, times = [acc[1], *values], [time, *times]
        return [time, min((v for v, t in zip(values, times, strict=True) if t == time), key=rank)]

    def merge(self, acc: list[Any] | None, other: list[Any] | None) -> list[Any] | None:
        return acc if other is None else self.add(acc, [other[1]], (other[0],))

    def result(self, acc: list[Any] | None) -> Any:
        return None if acc is None else acc[1]


@dataclass(frozen=True)
class Last(First):
    """The value with the greatest event time; of several at that time the one of greatest `rank`."""

    def add(self, acc: list[Any] | None, values: list[Any], times: Sequence[int]) -> list[Any] | None:
        if not values:
            return acc
        time = max(times)
        if acc is not None:
            if acc[0] > time:
                return acc
            if acc[0] == time:
                values, times = [acc[1], *values], [time, *times]
        return [time, max((v for v, t in zip(values, times, strict=True) if t == time), key=rank)]


_TEMPORAL = (dt.date, dt.time, dt.timedelta)


def rank(value: Any) -> tuple[Any, ...]:
    """A key that orders values of any kind: numbers first, then the others by the name of their type; values that
    have no order of their own by their text."""
    if isinstance(value, (int, float)):
        return ("", value)
    name = type(value).__name__
    if isinstance(value, dt.datetime):
        zoned = value if value.tzinfo is not None else value.replace(tzinfo=dt.UTC)
        return (name, zoned)
    if isinstance(value, dt.time):
        return (name, value.isoformat())
    if isinstance(value, (str, bytes, *_TEMPORAL)):
        return (name, value)
    if isinstance(value, (tuple, list)):
        return (name, tuple(map(rank, value)))
    return (name, repr(value))
