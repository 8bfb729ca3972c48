"""Aggregating columnar batches by panes: Polars groups a batch, and only the groups reach the state."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from penstock.flow.accumulators import Aggregate, Count, Needs
from penstock.flow.batch import Columns, Rows
from penstock.flow.measures import Measures
from penstock.flow.windows import Sliding

if TYPE_CHECKING:
    import polars as pl

__all__ = ["split_late", "summarise"]

Group: TypeAlias = tuple[Hashable, int, list[Sequence[Any]]]
"""A key, the start of a pane, and for each aggregate what its `absorb` takes (for a count: the number)."""


def split_late(batch: Columns, window: Sliding, horizon: int) -> tuple[Columns, Rows | None]:
    """The records that some open window takes, and the others as rows, if there are any."""
    import polars as pl

    low = batch.frame[batch.time or ""].min()
    if not isinstance(low, int) or window.last_end(low) > horizon:
        return batch, None
    time = pl.col(batch.time or "").cast(pl.Int64)
    on_time = (time // window.slide_ms * window.slide_ms + window.size_ms) > horizon
    late = Columns(batch.frame.filter(~on_time), batch.key, batch.time, batch.lane, batch.origin)
    return Columns(batch.frame.filter(on_time), batch.key, batch.time, batch.lane, batch.origin), late.rows()


def summarise(batch: Columns, measures: Measures, pane_ms: int) -> Iterator[Group] | None:
    """The batch's groups, or `None` when Polars cannot compute one of the aggregates just as rows would be."""
    import polars as pl

    expressions: list[pl.Expr] = [pl.len()]
    spans: list[slice] = []
    for aggregate in measures.aggregates:
        if isinstance(aggregate, Count):
            spans.append(slice(2, 3))
            continue
        column = _column(batch.frame, aggregate)
        partials = None if column is None else aggregate.partials(column)
        if partials is None:
            return None
        first = len(expressions) + 2
        spans.append(slice(first, first + len(partials)))
        expressions += partials
    time = pl.col(batch.time or "").cast(pl.Int64)
    grouped = batch.frame.group_by(
        pl.col(batch.key or "").alias("key"), (time // pane_ms * pane_ms).alias("pane"), maintain_order=True
    ).agg(expression.alias(f"part {i}") for i, expression in enumerate(expressions))
    return ((row[0], row[1], [row[span] for span in spans]) for row in grouped.iter_rows())


def _column(frame: pl.DataFrame, aggregate: Aggregate) -> pl.Expr | None:
    """The aggregate's field as an expression in which everything missing is null; `None` when rows must be used."""
    import polars as pl

    name = aggregate.field
    if not isinstance(name, str) or name not in frame.columns:
        return None
    kind = frame.schema[name]
    if kind.is_float():
        return pl.col(name).cast(pl.Float64).fill_nan(None)
    if kind.is_integer():
        return pl.col(name).cast(pl.Int64) if _sum_fits(frame[name]) else None
    if aggregate.needs is Needs.ORDER and kind in (pl.String, pl.Date):
        return pl.col(name)
    return None


def _sum_fits(series: pl.Series) -> bool:
    """Whether no sum of these integers can exceed 64 bits, where Polars would wrap."""
    low, high = series.min(), series.max()
    if low is None or high is None:
        return True
    return isinstance(low, int) and isinstance(high, int) and max(abs(low), abs(high)) * len(series) < 2**63
