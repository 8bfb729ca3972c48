"""What everybody who takes part in a shift has: the leader's record, what was settled, and reports.

There are two sides to a party. What happens in the executor's log (`apply`, frames) is the same in every replica that
executes the log. What the leader says, and what is said to it, is the primary's affair and changes nothing until it has
become an event of the log.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import msgspec

from penstock.errors import ExchangeError
from penstock.exchange.frame import Epoch
from penstock.exchange.split.instructions import Instruction, Link, Unlink
from penstock.exchange.split.messages import Event, Open, Outcome, Prepared, Report, Settled
from penstock.exchange.split.routing import Phase, Routing, Shift


class Progress(msgspec.Struct):
    """What a party's log has brought about."""

    settled: Epoch
    """Every shift up to this one was acted upon, or had ended before this executor was started."""
    settled_at: int = 0
    """The log position of that."""
    opened: Shift | None = None
    """The last shift for whose newcomer there are channels here."""
    opened_at: int = 0


class Party:
    """See the module. `record` is the newest that is known when the executor is started."""

    _opens: ClassVar[bool] = True
    """Whether it has a channel with a newcomer."""

    def __init__(self, name: str, record: Routing) -> None:
        self.name = name
        self.record = record
        shift = record.shift
        self.progress = Progress(record.epoch if shift is None or not record.undecided else _before(shift.id))
        self.refused: Counter[str] = Counter()
        """Messages refused, by reason."""
        self._connected: Epoch | None = None
        self._told: set[Report] = set()

    # ---- the leader -------------------------------------------------------------------------------------------------

    def on_record(self, record: Routing) -> None:
        """The leader's record changed. Older and repeated ones are refused."""
        if record.epoch <= self.record.epoch:
            self.refused["older record"] += 1
            return
        self.record = record

    def connected(self, shift: Epoch) -> None:
        """The channels of this shift are open."""
        self._connected = shift

    def due(self) -> Event | None:
        """What the primary is to put into its log as an event, when it can. Asked again until it is there."""
        record, shift = self.record, self.record.shift
        if shift is None or shift.id <= self.progress.settled or self.name not in shift.everybody:
            return None
        if record.phase is Phase.PREPARING:
            return Open(shift) if self._to_open(shift) and self._connected == shift.id else None
        return None if record.undecided else Outcome(shift, record.phase is Phase.COMMITTED)

    def turn(self, secured: int) -> list[Report]:
        """The end of a turn of the primary's loop: what is to be said to the leader. `secured` is the log position
        through which whoever may be promoted has the log: what depends on more is not said yet."""
        shift = self.record.shift
        if shift is None or self.name not in shift.everybody:
            self._told.clear()
            return []
        new = [report for report in self._reports(shift.id, secured) if report not in self._told]
        self._told.update(new)
        return new

    def silence(self) -> None:
        """Reports may be lost: they are said again."""
        self._told.clear()

    def _reports(self, shift: Epoch, secured: int) -> list[Report]:
        progress = self.progress
        if self.record.phase is Phase.PREPARING:
            open_ = not self._to_open(self.record.shift) and progress.opened_at <= secured
            return [Prepared(shift, self.name)] if open_ and self._connected == shift else []
        if not self.record.undecided and progress.settled >= shift and progress.settled_at <= secured:
            return [Settled(shift, self.name)]
        return []

    # ---- the log ----------------------------------------------------------------------------------------------------

    def _to_open(self, shift: Shift | None) -> bool:
        if not self._opens or shift is None or not shift.newcomer:
            return False
        return self.progress.opened is None or self.progress.opened.id < shift.id

    def _open(self, event: Open, position: int) -> list[Instruction]:
        """The newcomer's channels are opened."""
        shift = event.shift
        if not self._fresh(shift.id, "opening") or not self._to_open(shift):
            return []
        self.progress.opened, self.progress.opened_at = shift, position
        return [Link(shift.taker)]

    def _fresh(self, shift: Epoch, what: str) -> bool:
        """Whether a frame or event is of a shift that was not settled yet; otherwise it is refused."""
        if shift <= self.progress.settled:
            self.refused[f"{what} of a shift that is settled"] += 1
            return False
        return True

    def _given_up(self, shift: Epoch, position: int) -> list[Instruction]:
        """The shift was abandoned: the newcomer's channels are closed."""
        self._settle(shift, position)
        opened = self.progress.opened
        return [Unlink(opened.taker)] if opened is not None and opened.id == shift else []

    def _settle(self, shift: Epoch, position: int) -> None:
        self.progress.settled, self.progress.settled_at = shift, position

    def _broken(self, what: str) -> ExchangeError:
        return ExchangeError(f"{self.name}: {what}", remedy="restore the model from its last durable checkpoint")


def _before(epoch: Epoch) -> Epoch:
    return (epoch[0], epoch[1] - 1)
