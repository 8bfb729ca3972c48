"""Tumbling and sliding windows: state by **panes**, the pieces of time that lie wholly inside or outside of a window.

A record is added to one pane, however many windows hold it; windows put their panes together when they are emitted
(Li et al., "No pane, no gain", SIGMOD Record 34(1), 2005). A tumbling window is one pane.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, ClassVar, TypeAlias

from penstock.flow.accumulators import Aggregate
from penstock.flow.batch import Batch, Columns, Rows
from penstock.flow.horizon import Due, HorizonOperator, split
from penstock.flow.measures import Measured, Measures
from penstock.flow.operator import StepContext
from penstock.flow.timers import Timers
from penstock.flow.windows import Sliding

__all__ = ["PaneOperator"]

Panes: TypeAlias = dict[int, list[Any]]
"""The state of a key: the start of a pane -> one accumulator per aggregate."""


class PaneOperator(HorizonOperator):
    """Aggregates by tumbling or sliding windows."""

    keyed_outputs: ClassVar[bool] = False

    def __init__(
        self, ctx: StepContext, window: Sliding, aggregates: Sequence[tuple[str, Aggregate]], late_ms: int
    ) -> None:
        super().__init__(ctx, late_ms)
        self._window = window
        self._pane_ms = window.pane_ms
        self._names = [name for name, _ in aggregates]
        self._measures = Measures([aggregate for _, aggregate in aggregates])
        self._single = all(source == 0 or source is None for source in self._measures.sources)
        self._timers = Timers()
        """The ends of windows that keys wait for; a key need only wait for its next one."""

    def process(self, port: int, batch: Batch) -> None:
        self.arrived(port, batch)
        if isinstance(batch, Columns):
            from penstock.flow.steps.pane_columns import split_late, summarise

            batch, late = split_late(batch, self._window, self.horizon)
            if late is not None:
                self.send_late(late)
            groups = summarise(batch, self._measures, self._pane_ms)
            if groups is not None:
                for key, pane, parts in groups:
                    self._absorb(self._accumulators(key, pane), parts)
                return
            batch = batch.rows()
        else:
            batch, late = self._split_late(batch)
            if late is not None:
                self.send_late(late)
        if batch.values:
            self._add(self._measures.read(self.ctx, batch))

    def _split_late(self, rows: Rows) -> tuple[Rows, Rows | None]:
        times = rows.times or []
        last_end, horizon = self._window.last_end, self.horizon
        if last_end(min(times)) > horizon:
            return rows, None
        return split(rows, [i for i, time in enumerate(times) if last_end(time) <= horizon])

    def _add(self, measured: Measured) -> None:
        """Group the records by key and pane, then touch each accumulator once."""
        keys, times = measured.rows.keys or [], measured.rows.times or []
        if not times:
            return
        size, low = self._pane_ms, min(times)
        only: int | None = low - low % size
        labels: Iterable[Any] = keys
        if max(times) >= low - low % size + size:
            only, labels = None, zip(keys, [time - time % size for time in times], strict=True)
        if not measured.columns:
            self._add_counts(labels, only)
        elif self._single and not self._measures.timed:
            self._add_values(labels, only, measured)
        else:
            groups: defaultdict[Any, list[int]] = defaultdict(list)
            for i, label in enumerate(labels):
                groups[label].append(i)
            for label, members in groups.items():
                key, pane = label if only is None else (label, only)
                measured.add(self._accumulators(key, pane), members)

    def _add_counts(self, labels: Iterable[Any], only: int | None) -> None:
        """No aggregate reads a field: all of them count."""
        for label, n in Counter(labels).items():
            key, pane = label if only is None else (label, only)
            accs = self._accumulators(key, pane)
            for at in range(len(accs)):
                accs[at] += n

    def _add_values(self, labels: Iterable[Any], only: int | None, measured: Measured) -> None:
        """All aggregates read the same field, or none."""
        groups: defaultdict[Any, list[Any]] = defaultdict(list)
        for label, value in zip(labels, measured.columns[0], strict=True):
            groups[label].append(value)
        gaps, measures = measured.gaps[0], self._measures
        plan = [
            (at, a, source is None)
            for at, (a, source) in enumerate(zip(measures.aggregates, measures.sources, strict=True))
        ]
        for label, group in groups.items():
            key, pane = label if only is None else (label, only)
            accs = self._accumulators(key, pane)
            values = [value for value in group if value is not None] if gaps else group
            for at, aggregate, counts in plan:
                accs[at] = aggregate.add(accs[at], group if counts else values, ())

    def _absorb(self, accs: list[Any], parts: list[Sequence[Any]]) -> None:
        for at, (aggregate, source) in enumerate(zip(self._measures.aggregates, self._measures.sources, strict=True)):
            accs[at] = accs[at] + parts[at][0] if source is None else aggregate.absorb(accs[at], parts[at])

    def _accumulators(self, key: Hashable, pane: int) -> list[Any]:
        panes: Panes | None = self.state.get(key)
        if panes is None:
            panes = self.state[key] = {}
        accs = panes.get(pane)
        if accs is None:
            accs = panes[pane] = self._measures.accumulators()
            self._timers.set(key, self._window.first_end(pane, self.horizon))
        return accs

    def close_until(self, horizon: int) -> Due:
        due = Due([], [], [])
        for end, key in self._timers.until(horizon):
            due.keys.append(key)
            due.values.append(self._close(key, end))
            due.times.append(end - 1)
        return due

    def _close(self, key: Hashable, end: int) -> dict[str, Any]:
        """The result of the window of `key` that ends at `end`; panes that no later window needs are forgotten."""
        panes: Panes = self.state[key]
        window, start = self._window, end - self._window.size_ms
        if window.slide_ms == window.size_ms:
            accs = panes.pop(start)
        else:
            accs = self._assemble(panes, start, end)
            for pane in [pane for pane in panes if window.last_end(pane) <= end]:
                del panes[pane]
            if panes:
                self._timers.set(key, window.first_end(min(panes), end))
        if not panes:
            del self.state[key]
        return self._record(key, start, end, accs)

    def _assemble(self, panes: Panes, start: int, end: int) -> list[Any]:
        accs = self._measures.accumulators()
        for pane in sorted(panes):
            if start <= pane < end:
                self._measures.merge(accs, panes[pane])
        return accs

    def _record(self, key: Hashable, start: int, end: int, accs: list[Any]) -> dict[str, Any]:
        record: dict[str, Any] = {"key": key, "start": start, "end": end}
        for name, aggregate, acc in zip(self._names, self._measures.aggregates, accs, strict=True):
            record[name] = aggregate.result(acc)
        return record

    def dump(self, value: Panes) -> list[Any]:
        return [[pane, self._measures.dump(accs)] for pane, accs in value.items()]

    def load(self, plain: list[Any]) -> Panes:
        return {pane: self._measures.load(accs) for pane, accs in plain}

    def restored(self) -> None:
        self._timers = Timers()
        for key, panes in self.state.items():
            for pane in panes:
                self._timers.set(key, self._window.first_end(pane, self.horizon))

    def view(self, value: Panes) -> list[dict[str, Any]]:
        """The windows that are not closed yet, with what they hold so far."""
        window = self._window
        starts = sorted(
            {start for pane in value for start in window.starts(pane) if start + window.size_ms > self.horizon}
        )
        shown = []
        for start in starts:
            record = self._record(
                None, start, start + window.size_ms, self._assemble(value, start, start + window.size_ms)
            )
            del record["key"]
            shown.append(record)
        return shown
