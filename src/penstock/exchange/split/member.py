"""An executor of the stage, which may give key groups away or take them over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import msgspec

from penstock.exchange.frame import Epoch
from penstock.exchange.split.giver import Giver
from penstock.exchange.split.instructions import Instruction
from penstock.exchange.split.messages import Barrier, Event, Outcome, Piece, Report, Staged, Verdict
from penstock.exchange.split.party import Party, Progress
from penstock.exchange.split.routing import Phase, Routing
from penstock.exchange.split.taker import Taker


class MemberState(msgspec.Struct):
    """What a checkpoint of the executor has to contain, beside what was cut out or staged."""

    giver: Giver
    taker: Taker
    progress: Progress


class Member(Party):
    """See the module. `inputs` are the channels from the stage's producers; `newcomer`: it was started for a shift."""

    _opens: ClassVar[bool] = False  # its own channels exist from the beginning, but for the one that carries the state

    def __init__(self, name: str, record: Routing, inputs: Iterable[int], *, newcomer: bool = False) -> None:
        super().__init__(name, record)
        self.giver = Giver(set(inputs))
        self.taker = Taker(newcomer)

    # ---- the log ----------------------------------------------------------------------------------------------------

    def on_barrier(self, channel: int, barrier: Barrier) -> list[Instruction]:
        """A barrier is the next frame of a channel."""
        if not self._fresh(barrier.shift.id, "barrier"):
            return []
        self._alone(barrier.shift.id)
        return self.giver.on_barrier(channel, barrier)

    def on_end(self, channel: int) -> list[Instruction]:
        """A channel from a producer has ended."""
        self.giver.ended.add(channel)
        return self.giver.complete()

    def pieces(self, contents: Sequence[Any], marks: dict[int, int]) -> list[Piece]:
        """What was cut out, as frames for the taker. `marks`: edge -> this executor's watermark, where it has one."""
        return self.giver.pieces(contents, marks)

    def on_piece(self, piece: Piece, position: int) -> list[Instruction]:
        """A part of the state is the next frame of the giver's channel."""
        if not self._fresh(piece.shift, "piece"):
            return []
        self._alone(piece.shift)
        return self.taker.on_piece(piece, position)

    def advance(self, edge: int, watermark: int, position: int) -> None:
        """This executor's watermark of an edge has moved."""
        self.taker.own[edge] = watermark
        self.taker.check(position)

    def on_verdict(self, verdict: Verdict, position: int) -> list[Instruction]:
        """A producer says in its channel how the shift ended: what it held back comes next. The first one counts."""
        return (
            self._decided(verdict.shift, verdict.committed, position) if verdict.shift > self.progress.settled else []
        )

    def apply(self, event: Event, position: int) -> list[Instruction]:
        """An event of the log: the leader said so first."""
        if not isinstance(event, Outcome) or not self._fresh(event.shift.id, "outcome"):
            return []
        return self._decided(event.shift.id, event.committed, position)

    def _decided(self, shift: Epoch, committed: bool, position: int) -> list[Instruction]:
        self._alone(shift)
        giver, taker = self.giver, self.taker
        if committed and not giver.cut and taker.staged_at is None:
            raise self._broken(f"shift {shift} was committed, but its state was neither given away nor taken over")
        self._settle(shift, position)
        if giver.shift is not None:
            return giver.decided(committed)
        return taker.decided(shift, committed) if taker.shift is not None else []

    def _alone(self, shift: Epoch) -> None:
        others = {self.giver.shift.id if self.giver.shift else shift, self.taker.shift or shift} - {shift}
        if others:
            raise self._broken(f"shift {shift} goes on before {others.pop()} was settled")

    # ---- reports ----------------------------------------------------------------------------------------------------

    def _reports(self, shift: Epoch, secured: int) -> list[Report]:
        if self.record.phase is Phase.SWITCHING:
            staged_at = self.taker.staged_at
            there = self.taker.shift == shift and staged_at is not None and staged_at <= secured
            return [Staged(shift, self.name)] if there else []
        return super()._reports(shift, secured)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def dump(self) -> MemberState:
        """What belongs into the executor's state, as a copy."""
        return _copy(MemberState(self.giver, self.taker, self.progress))

    def load(self, state: MemberState) -> None:
        """Go on from a checkpoint."""
        copy = _copy(state)
        self.giver, self.taker, self.progress = copy.giver, copy.taker, copy.progress


def _copy(state: MemberState) -> MemberState:
    """Contents are shared: nobody changes them."""
    replace, giver, taker = msgspec.structs.replace, state.giver, state.taker
    return MemberState(
        replace(giver, inputs=set(giver.inputs), ended=set(giver.ended), arrived=set(giver.arrived)),
        replace(taker, parts=dict(taker.parts), own=dict(taker.own)),
        replace(state.progress),
    )
