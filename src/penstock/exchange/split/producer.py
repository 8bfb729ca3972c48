"""A producer of the stage: sends the barrier, holds back what belongs to the moving groups, and releases it.

Giver and taker are not told watermarks meanwhile. Whoever gets the records in the end must not have been told before
that none of the kind would come; and neither may tell its consumers of a time at which timers of the moving groups,
which nobody can fire now, would have fired.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from penstock.exchange.split.instructions import Advance, Finish, Instruction, Pass, Route, Tell, Unlink
from penstock.exchange.split.messages import Barrier, Event, Open, Outcome, Switch, Verdict
from penstock.exchange.split.party import Party, Progress
from penstock.exchange.split.routing import Phase, Routing, Shift

DEFAULT_BUFFER = 16 * 2**20
_MARK_BYTES = 16


class Held(msgspec.Struct):
    """Something that waits for the decision, in order."""

    edge: int
    kind: Literal["records", "watermark", "end"]
    content: Any
    size: int


class ProducerState(msgspec.Struct):
    """What a checkpoint of the executor has to contain."""

    version: int
    table: tuple[int, ...]
    shift: Shift | None
    held: list[Held]
    ended: list[int]
    progress: Progress


class Producer(Party):
    """See the module. `edges` are the producer's keyed edges to the stage; `buffer_bytes` bounds what it holds back:
    beyond it `ready` is false, and the executor takes no further input."""

    def __init__(
        self, name: str, record: Routing, edges: Iterable[int] = (0,), buffer_bytes: int = DEFAULT_BUFFER
    ) -> None:
        super().__init__(name, record)
        self.edges = tuple(edges)
        self.buffer_bytes = buffer_bytes
        self.version = record.version
        self.table = record.table
        self.shift: Shift | None = None
        """The one for which records are held back."""
        self.held: list[Held] = []
        self.bytes = 0
        """Held back."""
        self.ended: set[int] = set()
        """Edges that bring nothing more."""

    # ---- the worker asks --------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether further input may be taken."""
        return self.bytes < self.buffer_bytes

    def route(self) -> Route:
        """How batches are split now."""
        shift = self.shift
        if shift is None:
            return Route(self.table, max(self.table) + 1, None)
        held = max(*self.table, shift.taker) + 1
        moving = set(shift.groups)
        return Route(tuple(held if g in moving else e for g, e in enumerate(self.table)), held + 1, held)

    # ---- the log ----------------------------------------------------------------------------------------------------

    def due(self) -> Event | None:
        record, shift = self.record, self.record.shift
        if record.phase is Phase.SWITCHING and shift is not None and self.name in shift.parties and self.shift is None:
            return Switch(shift) if shift.id > self.progress.settled else None
        return super().due()

    def apply(self, event: Event, position: int) -> list[Instruction]:
        """An event of the log."""
        if isinstance(event, Open):
            return self._open(event, position)
        if isinstance(event, Switch):
            return self._switch(event.shift) if self._fresh(event.shift.id, "switch") else []
        return self._decided(event, position) if self._fresh(event.shift.id, "outcome") else []

    def _switch(self, shift: Shift) -> list[Instruction]:
        if self.shift is not None:
            raise self._broken(f"shift {shift.id} began before {self.shift.id} was settled")
        if self._to_open(shift):
            raise self._broken(f"shift {shift.id} goes on before the newcomer's channel was opened")
        self.shift = shift
        barriers = [Tell(edge, shift.giver, Barrier(shift)) for edge in self.edges if edge not in self.ended]
        return [*barriers, self.route()]

    def hold(self, edge: int, content: Any, size: int) -> None:
        """Records of the moving groups were made."""
        if self.shift is None:
            raise self._broken("records are held back, but no shift is under way")
        self._hold(Held(edge, "records", content, size))

    def watermark(self, edge: int, value: int) -> frozenset[int]:
        """The edge's watermark moved: the executors that must not be told yet."""
        if self.shift is None:
            return frozenset()
        last = self.held[-1] if self.held else None
        if last is not None and last.kind == "watermark" and last.edge == edge:
            last.content = value  # nothing lies between the two
        else:
            self._hold(Held(edge, "watermark", value, _MARK_BYTES))
        return frozenset((self.shift.giver, self.shift.taker))

    def end(self, edge: int) -> frozenset[int]:
        """The edge has ended: the executors that must not be told yet."""
        self.ended.add(edge)
        if self.shift is None:
            return frozenset()
        self._hold(Held(edge, "end", None, 0))
        return frozenset((self.shift.giver, self.shift.taker))

    def _hold(self, held: Held) -> None:
        self.held.append(held)
        self.bytes += held.size

    def _decided(self, outcome: Outcome, position: int) -> list[Instruction]:
        shift, told = outcome.shift, list[Instruction]()
        if self.shift is not None and self.shift.id != shift.id:
            raise self._broken(f"shift {shift.id} was decided while {self.shift.id} is under way")
        if self.shift is None and outcome.committed and not self.ended.issuperset(self.edges):
            raise self._broken(f"shift {shift.id} was committed without this producer's barrier")
        if self.shift is not None:
            told += self._release(shift, outcome.committed)
            self.shift, self.held, self.bytes = None, [], 0
        if outcome.committed:
            moving = set(shift.groups)
            self.table = tuple(shift.taker if g in moving else e for g, e in enumerate(self.table))
            self.version += 1
            told += [Unlink(shift.giver)] if shift.retires else []
            self._settle(shift.id, position)
        else:
            told += self._given_up(shift.id, position)
        return [*told, self.route()]

    def _release(self, shift: Shift, committed: bool) -> list[Instruction]:
        """The verdict, and behind it what was held back, to the owner; watermarks and ends to both."""
        owner, other = (shift.taker, shift.giver) if committed else (shift.giver, shift.taker)
        others = () if other == shift.taker and shift.newcomer else (other,)  # an unwanted newcomer is gone
        ending = {held.edge for held in self.held if held.kind == "end"}
        told: list[Instruction] = []
        for edge in self.edges:
            if edge in ending or edge not in self.ended:
                told += (Tell(edge, executor, Verdict(shift.id, committed)) for executor in (owner, *others))
        for held in self.held:
            if held.kind == "records":
                told.append(Pass(held.edge, owner, held.content))
            elif held.kind == "watermark":
                told += (Advance(held.edge, executor, held.content) for executor in (owner, *others))
            else:
                told += (Finish(held.edge, executor) for executor in (owner, *others))
        return told

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def dump(self) -> ProducerState:
        """What belongs into the executor's state."""
        return ProducerState(
            self.version,
            self.table,
            self.shift,
            [msgspec.structs.replace(held) for held in self.held],
            sorted(self.ended),
            msgspec.structs.replace(self.progress),
        )

    def load(self, state: ProducerState) -> None:
        """Go on from a checkpoint; ask `route` anew."""
        self.version, self.table, self.shift = state.version, state.table, state.shift
        self.held = [msgspec.structs.replace(held) for held in state.held]
        self.bytes = sum(held.size for held in self.held)
        self.ended = set(state.ended)
        self.progress = msgspec.structs.replace(state.progress)
