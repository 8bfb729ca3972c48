"""How an executor gives key groups away: it cuts their state out when every input has brought the barrier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from penstock.errors import ExchangeError
from penstock.exchange.split.instructions import Cut, Forget, Instruction, Thaw
from penstock.exchange.split.messages import Barrier, Piece
from penstock.exchange.split.routing import Shift


class Giver(msgspec.Struct):
    """See the module. All of it is part of the executor's state."""

    inputs: set[int]
    """The channels from the stage's producers."""
    ended: set[int] = set()
    shift: Shift | None = None
    """The one whose barriers come in."""
    arrived: set[int] = set()
    cut: bool = False
    """Whether the state is cut out."""

    def on_barrier(self, channel: int, barrier: Barrier) -> list[Instruction]:
        """The barrier of a shift that is not settled is the next frame of a channel."""
        if channel not in self.inputs:
            raise ExchangeError(f"channel {channel} is no input of this executor")
        self.shift = barrier.shift
        self.arrived.add(channel)
        return self.complete()

    def complete(self) -> list[Instruction]:
        """The cut, if nothing of the moving groups can come any more. An ended channel holds nothing up."""
        if self.shift is None or self.cut or self.inputs - self.arrived - self.ended:
            return []
        self.cut = True
        return [Cut(self.shift)]

    def pieces(self, contents: Sequence[Any], marks: dict[int, int]) -> list[Piece]:
        """What was cut out, as frames."""
        if self.shift is None or not self.cut:
            raise ExchangeError("state was to be given away, but none was asked for")
        parts = list(contents) or [None]
        return [Piece(self.shift.id, number, len(parts), marks, part) for number, part in enumerate(parts)]

    def decided(self, committed: bool) -> list[Instruction]:
        """The leader has decided its shift."""
        shift, cut = self.shift, self.cut
        self.shift, self.cut = None, False
        self.arrived.clear()
        if shift is None or not cut:
            return []
        return [Forget(shift) if committed else Thaw(shift)]
