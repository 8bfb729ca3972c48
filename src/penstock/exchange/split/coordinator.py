"""The leader's part: what it is told, and which change of the record follows.

It remembers reports only as long as it leads. A new leader begins with the record, announces it, and is told again.
"""

from __future__ import annotations

from collections import Counter

from penstock.exchange.split import routing
from penstock.exchange.split.messages import Prepared, Report, Staged
from penstock.exchange.split.routing import Phase, Routing


class Coordinator:
    """Of one stage. `next` and the events give the record to write by compare-and-set on the epoch of `record`; call
    `on_record` with what the store has afterwards, whoever wrote it."""

    def __init__(self, record: Routing, term: int | None = None) -> None:
        self.record = record
        self.term = term
        self.prepared: set[str] = set()
        self.settled: set[str] = set()
        self.staged = False
        self.refused: Counter[str] = Counter()
        """Reports refused, by reason."""

    def on_record(self, record: Routing) -> Routing | None:
        """What the store has. Older ones are refused."""
        if record.epoch < self.record.epoch:
            self.refused["older record"] += 1
            return None
        if record.shift is None or self.record.shift is None or record.shift.id != self.record.shift.id:
            self.prepared.clear()
            self.settled.clear()
            self.staged = False
        self.record = record
        return self.next()

    def on_report(self, report: Report) -> Routing | None:
        """A party has said something."""
        shift = self.record.shift
        if shift is None or report.shift != shift.id or report.party not in shift.everybody:
            self.refused["report of another shift"] += 1
            return None
        if isinstance(report, Prepared):
            self.prepared.add(report.party)
        elif isinstance(report, Staged):
            self.staged = True
        else:
            self.settled.add(report.party)
        return self.next()

    def next(self) -> Routing | None:
        """The change that is due."""
        record, term = self.record, self.term
        if record.shift is None:
            return None
        if record.phase is Phase.PREPARING:
            return routing.switching(record, record.shift.id, self.prepared, term)
        if record.phase is Phase.SWITCHING:
            return routing.committed(record, record.shift.id, term) if self.staged else None
        return routing.finished(record, record.shift.id, self.settled, term)

    def give_up(self) -> Routing | None:
        """A deadline has passed, a party without a standby is gone, or the split is not wanted any more. `None`: it is
        too late for that, or there is nothing to give up."""
        return routing.abandoned(self.record, self.record.shift.id, self.term) if self.record.shift else None
