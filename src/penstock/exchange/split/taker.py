"""How an executor takes key groups over: it keeps their state aside until the commit, then makes it its own."""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.exchange.frame import Epoch
from penstock.exchange.split.instructions import Adopt, Discard, Instruction, Stage
from penstock.exchange.split.messages import Piece


class Taker(msgspec.Struct):
    """See the module. All of it is part of the executor's state."""

    newcomer: bool
    """It was started for this, and owns nothing yet."""
    shift: Epoch | None = None
    """The one whose state comes in."""
    parts: dict[int, Any] = {}
    marks: dict[int, int] = {}
    """Edge -> the giver's watermark."""
    own: dict[int, int] = {}
    """Edge -> own watermark."""
    complete: bool = False
    staged_at: int | None = None
    """The log position at which everything that the commit needs was there."""

    def on_piece(self, piece: Piece, position: int) -> list[Instruction]:
        """A part of the state is the next frame of the giver's channel."""
        if self.complete:
            return []
        self.shift, self.marks = piece.shift, piece.marks
        self.parts[piece.number] = piece.content
        if len(self.parts) < piece.count:
            return []
        self.complete = True
        contents = tuple(self.parts[number] for number in range(piece.count))
        self.parts = {}
        self.check(position)
        return [Stage(piece.shift, contents)]

    def check(self, position: int) -> None:
        """An executor that has groups already does not take over timers that are ahead of its own time: a record that
        the giver would have called late would be in time here. It waits; its producers have said as much, or will."""
        if self.complete and self.staged_at is None:
            behind = [edge for edge, mark in self.marks.items() if self.own.get(edge, mark - 1) < mark]
            if self.newcomer or not behind:
                self.staged_at = position

    def decided(self, shift: Epoch, committed: bool) -> list[Instruction]:
        """The leader has decided its shift."""
        marks = self.marks if self.newcomer else {}
        self.shift, self.complete, self.staged_at = None, False, None
        self.parts, self.marks = {}, {}
        if not committed:
            return [Discard(shift)]
        self.newcomer = False
        return [Adopt(shift, marks)]
