"""`join_latest`: each record of one stream with the latest record of another that has the same key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from penstock.errors import FlowError
from penstock.flow.batch import Batch, Columns, as_rows
from penstock.flow.graph import Partitioning, Step
from penstock.flow.operator import KeyedOperator, StepContext

__all__ = ["JoinLatest", "JoinLatestOperator"]


@dataclass(frozen=True)
class JoinLatest(Step):
    """Emit `Keyed(key, (left, right))` for each record of the first input, at once when it comes: `right` is the latest
    record of the second input with that key, or `None` when there has been none.

    The latest is the one with the greatest event time (of equals the one that came last), or simply the last that came
    when they carry no event time. One record per key is kept.
    """

    kind: ClassVar[str] = "join_latest"
    keyed_input: ClassVar[bool] = True

    def operator(self, ctx: StepContext) -> JoinLatestOperator:
        ctx.site = ctx.site or self.site
        return JoinLatestOperator(ctx)

    def partitioning(self, inputs: tuple[Partitioning, ...]) -> Partitioning:
        return Partitioning.PARTITIONED


class JoinLatestOperator(KeyedOperator):
    """The state of a key is `[time | None, right value]`. Left lanes and their watermarks pass through."""

    def process(self, port: int, batch: Batch) -> None:
        if (batch.key if isinstance(batch, Columns) else batch.keys) is None:
            raise FlowError(
                self.ctx.step,
                f"the records of its {'left' if port == 0 else 'right'} input have no key",
                remedy="put a key_by before it",
                site=self.ctx.site or None,
            )
        rows = as_rows(batch)
        keys, state = rows.keys or [], self.state
        if port == 0:
            pairs = [
                (value, state[key][1] if key in state else None) for key, value in zip(keys, rows.values, strict=True)
            ]
            self.out.send(rows.derive(pairs, keys=keys, times=rows.times))
            return
        times: list[Any] = rows.times if rows.times is not None else [None] * len(rows)
        for key, value, time in zip(keys, rows.values, times, strict=True):
            known = state.get(key)
            if known is None or known[0] is None or time is None or time >= known[0]:
                state[key] = [time, value]

    def advance(self, port: int, lane: int, watermark: int) -> None:
        if port == 0:
            self.out.advance(lane, watermark)

    def view(self, value: list[Any]) -> Any:
        """The right record."""
        return value[1]
