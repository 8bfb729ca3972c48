"""The best records of each key."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

from penstock.flow.batch import Batch, Keyed, as_rows
from penstock.flow.fields import Field
from penstock.flow.graph import Partitioning, Step
from penstock.flow.operator import Operator, StepContext
from penstock.flow.steps.emission import Emission, ResultOperator
from penstock.flow.steps.key_by import field_of

__all__ = ["TopK"]


@dataclass(frozen=True, kw_only=True)
class TopK(Step):
    """`Keyed(key, [records])`: the `k` records with the greatest `by(record)`, best first; of equal ones those whose
    repr comes first, whatever the order of arrival. With `of`, a record replaces an earlier one with the same
    `of(record)` (every identity is then kept in the state, since a list may need to fill up again)."""

    kind: ClassVar[str] = "top_k"
    keyed_input: ClassVar[bool] = True
    k: int
    by: Field | None = None
    of: Field | None = None
    emit: Emission | None = None
    """`update`: the list whenever it changes; `final`: once per key at the end; `None`: `final` for a bounded input."""

    def operator(self, ctx: StepContext) -> Operator:
        return _TopKOperator(ctx, self)

    def partitioning(self, inputs: tuple[Partitioning, ...]) -> Partitioning:
        return Partitioning.PARTITIONED


class _TopKOperator(ResultOperator):
    """State of a key: `[top, others]`; `top` is a sorted list of entries `[rank, tie, record]`, `others` (with `of`)
    the entries that are not in it, by identity."""

    def __init__(self, ctx: StepContext, step: TopK) -> None:
        super().__init__(ctx, (step.emit or ("final" if ctx.bounded else "update")) == "final")
        ctx.site = ctx.site or step.site
        self.k = step.k
        self.by = field_of(step.by) if step.by is not None else lambda record: record
        self.of = None if step.of is None else field_of(step.of)

    def process(self, port: int, batch: Batch) -> None:
        rows = as_rows(batch)
        keys: list[Hashable] = []
        results: list[Any] = []
        for key, value in zip(rows.keys or [], rows.values, strict=True):
            try:
                changed = self._take(key, value)
            except Exception as error:
                self.ctx.on_error(self.ctx, Keyed(key, value), error)
                continue
            if changed and not self.final:
                keys.append(key)
                results.append(self.result(key, self.state[key]))
        if results:
            self.out.send(rows.derive(results, keys=keys))

    def result(self, key: Hashable, state: Any) -> Any:
        return [entry[2] for entry in state[0]]

    def view(self, value: Any) -> Any:
        return self.result(None, value)

    def _take(self, key: Hashable, record: Any) -> bool:
        """Put one record in its place; whether the list changed."""
        top, others = self.state.get(key, ([], {}))
        rank = self.by(record)
        identity = None if self.of is None else self.of(record)
        if self.of is None and len(top) == self.k and rank < top[-1][0]:
            return False
        tie = repr(record if self.of is None else identity)
        old = [entry[1:] for entry in top]
        replaced = [entry for entry in top if self.of is not None and entry[1] == tie]
        pool = [entry for entry in top if entry not in replaced]
        others.pop(tie, None)
        if replaced and rank < replaced[0][0]:
            # A record that sinks may leave the list, and the best of the others moves up.
            pool += others.values()
        pool = _ranked([*pool, [rank, tie, record]])
        top, rest = pool[: self.k], pool[self.k :]
        if self.of is not None:
            others.update((entry[1], entry) for entry in rest)
            for entry in top:
                others.pop(entry[1], None)
        self.state[key] = [top, others]
        return [entry[1:] for entry in top] != old


def _ranked(entries: list[list[Any]]) -> list[list[Any]]:
    """Best rank first, then the smaller tie: two stable sorts, since a rank need not be a number."""
    return sorted(sorted(entries, key=lambda entry: entry[1]), key=lambda entry: entry[0], reverse=True)
