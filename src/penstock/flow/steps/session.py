"""Session windows: per key, runs of records without a gap of more than `gap_ms`. Late joiners merge sessions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from penstock.flow.accumulators import Aggregate
from penstock.flow.batch import Batch, Rows, as_rows
from penstock.flow.horizon import Due, HorizonOperator, split
from penstock.flow.measures import Measured, Measures
from penstock.flow.operator import StepContext
from penstock.flow.timers import Timers
from penstock.flow.windows import Session

__all__ = ["OpenSession", "SessionOperator"]


@dataclass(slots=True, eq=False)
class OpenSession:
    """A session that may still grow. `timer` is when it will be looked at; never later than its end."""

    first: int
    last: int
    timer: int
    accs: list[Any]


Sessions: TypeAlias = list[OpenSession]
"""The state of a key, in no particular order; hardly ever more than one or two."""


class SessionOperator(HorizonOperator):
    """Aggregates by session windows `[first, last + gap]`.

    Its horizon is a millisecond behind that of other windows, because a record at exactly `last + gap` belongs to the
    session, and may come as long as the watermark is not beyond that time.
    """

    keyed_outputs: ClassVar[bool] = False

    def __init__(
        self, ctx: StepContext, window: Session, aggregates: Sequence[tuple[str, Aggregate]], late_ms: int
    ) -> None:
        super().__init__(ctx, late_ms + 1)
        self._gap = window.gap_ms
        self._names = [name for name, _ in aggregates]
        self._measures = Measures([aggregate for _, aggregate in aggregates])
        self._timers = Timers()

    def process(self, port: int, batch: Batch) -> None:
        self.arrived(port, batch)
        rows = as_rows(batch)
        late = self._late(rows)
        if late:
            rows, lost = split(rows, late)
            self.send_late(lost)
        measured = self._measures.read(self.ctx, rows)
        times = measured.rows.times or []
        for key, members in _by_key(measured.rows).items():
            for run in self._runs(times, members):
                self._place(key, run, times, measured)

    def _late(self, rows: Rows) -> list[int]:
        """The records that can neither open a session nor join one."""
        times = rows.times or []
        gap, horizon = self._gap, self.horizon
        if min(times) + gap > horizon:
            return []
        late = []
        for key, members in _by_key(rows).items():
            for run in self._runs(times, members):
                first, last = times[run[0]], times[run[-1]]
                if last + gap <= horizon and not self._touching(key, first, last):
                    late += run
        return late

    def _runs(self, times: list[int], members: list[int]) -> Iterator[list[int]]:
        """`members` in order of time, cut where the gap is exceeded."""
        if len(members) > 1:
            members.sort(key=times.__getitem__)
            begin = 0
            for i in range(1, len(members)):
                if times[members[i]] - times[members[i - 1]] > self._gap:
                    yield members[begin:i]
                    begin = i
            yield members[begin:]
        else:
            yield members

    def _touching(self, key: Hashable, first: int, last: int) -> Sessions:
        gap = self._gap
        return [s for s in self.state.get(key, ()) if s.first - gap <= last and first <= s.last + gap]

    def _place(self, key: Hashable, run: list[int], times: list[int], measured: Measured) -> None:
        first, last = times[run[0]], times[run[-1]]
        touching = self._touching(key, first, last)
        if touching:
            session = touching[0]
            session.first, session.last = min(session.first, first), max(session.last, last)
            for other in touching[1:]:
                self._merge(session, other)
                self.state[key].remove(other)
        else:
            session = OpenSession(first, last, last + self._gap, self._measures.accumulators())
            self.state.setdefault(key, []).append(session)
            self._timers.set(key, session.timer)
        measured.add(session.accs, run)

    def _merge(self, session: OpenSession, other: OpenSession) -> None:
        session.first, session.last = min(session.first, other.first), max(session.last, other.last)
        session.timer = min(session.timer, other.timer)
        self._measures.merge(session.accs, other.accs)

    def close_until(self, horizon: int) -> Due:
        """Timers are set once and put off when they go off too early, so that a record costs none."""
        due = Due([], [], [])
        for at, key in self._timers.until(horizon):
            self._look(key, at, due)
        return due

    def _look(self, key: Hashable, at: int, due: Due) -> None:
        sessions: Sessions = self.state.get(key, [])
        for session in [session for session in sessions if session.timer == at]:
            end = session.last + self._gap
            if end > at:
                session.timer = end
                self._timers.set(key, end)
                continue
            sessions.remove(session)
            due.keys.append(key)
            due.values.append({"key": key, **self._record(session)})
            due.times.append(end - 1)
        if not sessions:
            self.state.pop(key, None)

    def _record(self, session: OpenSession) -> dict[str, Any]:
        record: dict[str, Any] = {"start": session.first, "end": session.last + self._gap}
        for name, aggregate, acc in zip(self._names, self._measures.aggregates, session.accs, strict=True):
            record[name] = aggregate.result(acc)
        return record

    def dump(self, value: Sessions) -> list[Any]:
        return [[session.first, session.last, self._measures.dump(session.accs)] for session in value]

    def load(self, plain: list[Any]) -> Sessions:
        return [OpenSession(first, last, last + self._gap, self._measures.load(accs)) for first, last, accs in plain]

    def restored(self) -> None:
        self._timers = Timers()
        for key, sessions in self.state.items():
            for session in sessions:
                session.timer = session.last + self._gap
                self._timers.set(key, session.timer)

    def view(self, value: Sessions) -> list[dict[str, Any]]:
        """The sessions that are not closed yet, with what they hold so far."""
        return [self._record(session) for session in sorted(value, key=lambda session: session.first)]


def _by_key(rows: Rows) -> dict[Hashable, list[int]]:
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for i, key in enumerate(rows.keys or ()):
        groups[key].append(i)
    return groups
