"""What a window computes: `.aggregate("stats", n=ps.count(), mean=ps.mean("value"))`.

A field is a name (a key of a dictionary or an attribute of an object) or a function of the record's value. Missing
values (`None` and NaN) are left out by every aggregate of a field. See `docs/event-time.md`.
"""

from __future__ import annotations

from penstock.flow.accumulators import Aggregate, Count, First, Last, Max, Mean, Min, Sum
from penstock.flow.fields import Field
from penstock.flow.sketches import DistinctCount, Quantile

__all__ = ["Aggregate", "count", "distinct_count", "first", "last", "max", "mean", "min", "quantile", "sum"]


def count() -> Aggregate:
    """How many records."""
    return Count()


def sum(field: Field | None = None) -> Aggregate:  # noqa: A001 - the name that users expect
    """The sum of a number per record; exact for ints, correctly rounded for floats. Nothing to add gives 0."""
    return Sum(field)


def mean(field: Field | None = None) -> Aggregate:
    """The arithmetic mean of a number per record, from the exact sum."""
    return Mean(field)


def min(field: Field | None = None) -> Aggregate:  # noqa: A001 - the name that users expect
    """The least value of a field (numbers, strings, bytes, dates, times, tuples of them)."""
    return Min(field)


def max(field: Field | None = None) -> Aggregate:  # noqa: A001 - the name that users expect
    """The greatest value of a field."""
    return Max(field)


def first(field: Field | None = None) -> Aggregate:
    """The value of the record with the least event time; ties go to the least value."""
    return First(field)


def last(field: Field | None = None) -> Aggregate:
    """The value of the record with the greatest event time; ties go to the greatest value."""
    return Last(field)


def quantile(field: Field | None, q: float) -> Aggregate:
    """The value at place `floor(q * (n - 1))` in order, `0 <= q <= 1`. Exact for up to 256 values, then within 1 % of
    the exact one. Raises `FlowError` when `q` is out of range."""
    return Quantile(field, q)


def distinct_count(field: Field | None = None) -> Aggregate:
    """How many different values. Exact up to 512, then with a standard error of 1.6 %."""
    return DistinctCount(field)
