"""The executors of a simulated stage: each is a function of its log, as a replica is, and loses the end of it when it
fails over.

Producers feed the members of one keyed stage, and one consumer takes what those make. Members count records per key and
per window of event time. Everything is arranged so that without a shift nothing would ever be late.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple, TypeAlias

from penstock.errors import ExchangeError
from penstock.exchange.keys import key_group
from penstock.exchange.split import instructions as told
from penstock.exchange.split.consumer import Consumer
from penstock.exchange.split.member import Member
from penstock.exchange.split.messages import Barrier, Event, Piece, Report, Verdict
from penstock.exchange.split.producer import Producer
from penstock.exchange.split.routing import Routing

WINDOW = 10
NEVER = -1_000
END = 1_000_000

group_of = cache(key_group)


class Violation(AssertionError):
    """A promise was broken."""


class Record(NamedTuple):
    producer: int
    number: int
    edge: int
    key: int
    time: int
    late: bool
    """It comes after a watermark said that it would not."""


Way: TypeAlias = tuple[str, int, str]
"""A channel: from, edge, to."""


class Node:
    """An executor. `log` is what happened; all state follows from it. `acked` of it survives a fail-over."""

    def __init__(self, name: str, machine: Producer | Member | Consumer, protected: bool) -> None:
        self.name = name
        self.machine: Any = machine
        self.protected = protected
        self.log: list[tuple[Any, ...]] = []
        self.acked = 0
        self.executed = 0
        self.paused = self.gone = False
        self.outs: dict[Way, list[tuple[int, Any]]] = {}
        """Frames made: (log position, frame)."""
        self.sent: dict[Way, int] = {}
        self.got: dict[Way, list[Any]] = {}
        """Frames that have come, in order, whether taken yet or not."""
        self.ahead: dict[tuple[Way, int], Any] = {}
        """Those that came too early."""
        self.taken: dict[Way, int] = {}
        self.waiting: set[Way] = set()
        """Channels with frames not taken."""
        self.slow: dict[Way, float] = {}
        """How likely a channel is passed over."""
        self.saved: tuple[int, Any] | None = None
        self.started = self.state()

    def state(self) -> Any:
        """All that the log has brought about."""
        own = {name: getattr(self, name) for name in self.parts()}
        outs = {way: list(frames) for way, frames in self.outs.items()}
        return copy.deepcopy(own), outs, dict(self.taken), self.machine.dump()

    def parts(self) -> tuple[str, ...]:
        raise NotImplementedError

    def restore(self, position: int, state: Any) -> None:
        own, outs, taken, machine = state
        for name, value in copy.deepcopy(own).items():
            setattr(self, name, value)
        self.outs = {way: list(frames) for way, frames in outs.items()}
        self.taken = dict(taken)
        self.machine.load(copy.deepcopy(machine))
        self.executed = position

    # ---- the log ----------------------------------------------------------------------------------------------------

    def happens(self, *entry: Any) -> None:
        self.log.append(entry)
        self._execute()

    def _execute(self) -> None:
        entry = self.log[self.executed]
        self.executed += 1
        if entry[0] == "frame":
            self.taken[entry[1]] = self.taken.get(entry[1], 0) + 1
        self.run(*entry)

    def run(self, kind: str, *what: Any) -> None:
        raise NotImplementedError

    def emit(self, way: Way, frame: Any) -> None:
        self.outs.setdefault(way, []).append((self.executed, frame))

    @property
    def secured(self) -> int:
        return self.acked if self.protected else self.executed

    def acknowledge(self, rng: random.Random) -> None:
        """The standby has more of the log."""
        self.acked = self.executed if rng.random() < 0.6 else rng.randint(self.acked, self.executed)

    def save(self) -> None:
        """A checkpoint for the standby."""
        self.acked = self.executed
        self.saved = (self.executed, self.state())

    def fail_over(self, rng: random.Random, make: Callable[[], Any]) -> None:
        """A standby takes over: it has the log through `acked`, and of the frames at least what that names."""
        ghost, self.machine = self.machine, make()
        assert ghost is not self.machine
        del self.log[self.acked :]
        position, state = self.saved or (0, self.started)
        self.restore(position, state)
        while self.executed < len(self.log):
            self._execute()
        for way, frames in self.got.items():
            taken = self.taken.get(way, 0)
            del frames[rng.randint(taken, len(frames)) :]
            (self.waiting.add if len(frames) > taken else self.waiting.discard)(way)
        self.sent.clear()
        self.ahead.clear()
        self.paused = False

    # ---- channels ---------------------------------------------------------------------------------------------------

    def transmit(self) -> Iterator[tuple[Way, int, Any]]:
        """What may leave: the output rule."""
        secured = self.secured
        for way, frames in self.outs.items():
            number = self.sent.get(way, 0)
            while number < len(frames) and frames[number][0] <= secured:
                yield way, number, frames[number][1]
                number += 1
            self.sent[way] = number

    def receive(self, way: Way, number: int, frame: Any) -> None:
        frames = self.got.setdefault(way, [])
        if number < len(frames):
            if frames[number] != frame:
                raise Violation(f"frame {number} of {way} came again with other content: {frame}, was {frames[number]}")
            return
        self.ahead[way, number] = frame
        while (way, len(frames)) in self.ahead:
            frames.append(self.ahead.pop((way, len(frames))))
            self.waiting.add(way)

    def take(self, rng: random.Random, hurry: bool = False) -> bool:
        """The next frame of one of the channels."""
        if not self.waiting:
            return False
        way = rng.choice(sorted(self.waiting))
        if not hurry and rng.random() < self.slow.setdefault(way, rng.choice((0.0, 0.0, 0.0, 0.0, 0.5, 0.9))):
            return True
        place = self.taken.get(way, 0)
        if place + 1 == len(self.got[way]):
            self.waiting.discard(way)
        self.happens("frame", way, self.got[way][place])
        return True

    # ---- the shift --------------------------------------------------------------------------------------------------

    def event(self) -> bool:
        event = self.machine.due()
        if event is not None:
            self.happens("event", event)
        return event is not None

    def turn(self) -> list[Report]:
        reports: list[Report] = self.machine.turn(self.secured)
        return reports

    def work(self, rng: random.Random) -> None:
        if not (rng.random() < 0.5 and self.event()):
            self.take(rng)


class ProducerNode(Node):
    """Reads its records from a source that can be read again."""

    def __init__(
        self, name: str, record: Routing, edges: int, records: list[Record], buffer: int, protected: bool, pace: float
    ) -> None:
        self.pace = pace
        self.records = records
        self.edges = range(edges)
        self.offset = 0
        self.marks = dict.fromkeys(self.edges, NEVER)
        self.bounds = {edge: _bounds(records, edge) for edge in self.edges}
        self.links = {edge: list(record.executors) for edge in self.edges}
        self.ended = False
        self.peak = 0
        super().__init__(name, Producer(name, record, self.edges, buffer), protected)
        self.table = self.machine.route()

    def parts(self) -> tuple[str, ...]:
        return "offset", "marks", "links", "ended"

    def restore(self, position: int, state: Any) -> None:
        super().restore(position, state)
        self.table = self.machine.route()

    def work(self, rng: random.Random) -> None:
        if rng.random() < 0.6 and self.event():
            return
        if self.offset < len(self.records):
            if self.machine.ready and rng.random() < self.pace:
                self.happens("read", rng.randint(1, 3))
        elif not self.ended:
            self.happens("end")

    def run(self, kind: str, *what: Any) -> None:
        if kind == "read":
            self._read(what[0])
        elif kind == "end":
            self.ended = True
            for edge in self.edges:
                self._tell(edge, ("end",), self.machine.end(edge))
        else:
            for instruction in self.machine.apply(what[0], self.executed):
                self._obey(instruction)

    def _read(self, count: int) -> None:
        batch = self.records[self.offset : self.offset + count]
        self.offset += len(batch)
        for record in batch:
            executor = self.table.table[group_of(record.key)]
            if executor == self.table.held:
                self.machine.hold(record.edge, record, 1)
                self.peak = max(self.peak, self.machine.bytes)
            else:
                self._send(record.edge, executor, ("record", record))
        for edge in self.edges:
            mark = self.bounds[edge][self.offset]
            if mark != self.marks[edge]:
                self.marks[edge] = mark
                self._tell(edge, ("mark", mark), self.machine.watermark(edge, mark))

    def _tell(self, edge: int, frame: tuple[Any, ...], held: frozenset[int]) -> None:
        for executor in self.links[edge]:
            if executor not in held:
                self._send(edge, executor, frame)

    def _send(self, edge: int, executor: int, frame: Any) -> None:
        self.emit((self.name, edge, f"m{executor}"), frame)

    def _obey(self, instruction: told.Instruction) -> None:
        if isinstance(instruction, told.Route):
            self.table = instruction
        elif isinstance(instruction, told.Tell):
            self._send(instruction.edge, instruction.executor, instruction.frame)
        elif isinstance(instruction, told.Pass):
            self._send(instruction.edge, instruction.executor, ("record", instruction.content))
        elif isinstance(instruction, told.Advance):
            self._send(instruction.edge, instruction.executor, ("mark", instruction.watermark))
        elif isinstance(instruction, told.Finish):
            self._send(instruction.edge, instruction.executor, ("end",))
        elif isinstance(instruction, told.Link):
            for edge in self.edges:
                self.links[edge].append(instruction.executor)
                self._send(edge, instruction.executor, ("mark", self.marks[edge]))
                if self.ended:
                    self._send(edge, instruction.executor, ("end",))
        elif isinstance(instruction, told.Unlink):
            for edge in self.edges:
                self.links[edge].remove(instruction.executor)


def _bounds(records: list[Record], edge: int) -> list[int]:
    """For every offset: no later record of the edge has a lower time."""
    bounds = [END - 1]
    for record in reversed(records):
        bounds.append(min(bounds[-1], record.time) if record.edge == edge and not record.late else bounds[-1])
    return bounds[::-1]


State: TypeAlias = dict[str, dict[Any, Any]]


class MemberNode(Node):
    """An executor of the stage. State per key: its records; per key and window: how many."""

    def __init__(self, name: str, record: Routing, inputs: list[Way], protected: bool, newcomer: bool = False) -> None:
        self.ways = inputs
        self.live: State = {"keys": {}, "windows": {}}
        self.frozen: State | None = None
        self.staged: State | None = None
        self.lanes: dict[Way, int] = dict.fromkeys(inputs, NEVER)
        self.floors = {way[1]: NEVER for way in inputs}
        self.mark = NEVER
        self.retired = False
        machine = Member(name, record, range(len(inputs)), newcomer=newcomer)
        super().__init__(name, machine, protected)

    def parts(self) -> tuple[str, ...]:
        return "live", "frozen", "staged", "lanes", "floors", "mark", "retired"

    def marks(self) -> dict[int, int]:
        found = dict(self.floors)
        for edge in found:
            found[edge] = max(found[edge], min(mark for way, mark in self.lanes.items() if way[1] == edge))
        return found

    def _out(self, frame: Any) -> None:
        self.emit((self.name, 0, "c"), frame)

    def run(self, kind: str, *what: Any) -> None:
        if kind == "event":
            self._obey(self.machine.apply(what[0], self.executed))
        else:
            self._frame(*what)
        before = self.mark
        marks = self.marks()
        self.mark = min(marks.values())
        for edge, mark in marks.items():
            if mark > NEVER and mark != self.machine.taker.own.get(edge):
                self.machine.advance(edge, mark, self.executed)
        for key, start in sorted(self.live["windows"]):
            if start + WINDOW <= self.mark:
                self._out(("window", key, start, self.live["windows"].pop((key, start))))
        if self.mark != before and not self.retired:
            self._out(("end",) if self.mark == END else ("mark", self.mark))

    def _frame(self, way: Way, frame: Any) -> None:
        position = self.executed
        if isinstance(frame, Barrier):
            self._obey(self.machine.on_barrier(self.ways.index(way), frame))
        elif isinstance(frame, Verdict):
            self._obey(self.machine.on_verdict(frame, position))
        elif isinstance(frame, Piece):
            self._obey(self.machine.on_piece(frame, position))
        elif frame[0] == "record":
            self._count(frame[1])
        elif frame[0] == "mark":
            self.lanes[way] = frame[1]
        else:
            self.lanes[way] = END
            self._obey(self.machine.on_end(self.ways.index(way)))

    def _count(self, record: Record) -> None:
        if self.retired or (self.frozen is not None and group_of(record.key) in self.frozen["groups"]):
            raise Violation(f"{self.name} gets {record} although its group is given away")
        start = record.time // WINDOW * WINDOW
        if record.time < self.mark and not record.late:
            raise Violation(f"{self.name} gets {record} late: its watermark is {self.mark}")
        seen = self.live["keys"].setdefault(record.key, [])
        seen.append(record)
        windows = self.live["windows"]
        late = start + WINDOW <= self.mark
        if not late:
            windows[record.key, start] = windows.get((record.key, start), 0) + 1
        self._out(("count", record.key, len(seen), record, late))

    def _obey(self, instructions: list[told.Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, told.Cut):
                self._cut(instruction)
            elif isinstance(instruction, told.Forget):
                self.frozen = None
                if instruction.shift.retires:
                    self.retired = True
                    self._out(("end",))
            elif isinstance(instruction, told.Thaw):
                assert self.frozen is not None
                self._put(self.frozen)
                self.frozen = None
            elif isinstance(instruction, told.Stage):
                self.staged = {"keys": {}, "windows": {}}
                for keys, windows in filter(None, instruction.contents):
                    self.staged["keys"].update({key: list(seen) for key, seen in keys})
                    self.staged["windows"].update(windows)
            elif isinstance(instruction, told.Adopt):
                for edge, mark in instruction.marks.items():
                    self.floors[edge] = max(self.floors[edge], mark)
                if self.staged is None:
                    raise Violation(f"{self.name} is to adopt state that it does not have")
                self._put(self.staged)
                self.staged = None
            elif isinstance(instruction, told.Discard):
                self.staged = None

    def _cut(self, instruction: told.Cut) -> None:
        shift = instruction.shift
        moving = set(shift.groups)
        keys = {key: seen for key, seen in self.live["keys"].items() if group_of(key) in moving}
        windows = {at: count for at, count in self.live["windows"].items() if group_of(at[0]) in moving}
        for key in keys:
            del self.live["keys"][key]
        for at in windows:
            del self.live["windows"][at]
        self.frozen = {"keys": keys, "windows": windows, "groups": dict.fromkeys(moving)}
        third = -(-len(keys) // 3) or 1
        names = sorted(keys)
        contents = []
        for first in range(0, len(names), third):
            own = names[first : first + third]
            contents.append(
                (
                    tuple((key, tuple(keys[key])) for key in own),
                    tuple((at, count) for at, count in windows.items() if at[0] in own),
                )
            )
        marks = {edge: mark for edge, mark in self.marks().items() if mark > NEVER}
        for piece in self.machine.pieces(contents, marks):
            self.emit((self.name, -1, f"m{shift.taker}"), piece)

    def _put(self, state: State) -> None:
        for part in ("keys", "windows"):
            both = self.live[part].keys() & state[part].keys()
            if both:
                raise Violation(f"{self.name} has state of {sorted(both)} already")
            self.live[part].update(state[part])


class ConsumerNode(Node):
    """Takes what the members make, and sees to it that none of it is late."""

    def __init__(self, record: Routing, protected: bool) -> None:
        self.lanes = {f"m{executor}": NEVER for executor in record.executors}
        self.mark = NEVER
        self.counts: dict[int, list[tuple[int, Record]]] = {}
        self.windows: dict[tuple[int, int], int] = {}
        self.late: list[Record] = []
        super().__init__("c", Consumer("c", record), protected)

    def parts(self) -> tuple[str, ...]:
        return "lanes", "mark", "counts", "windows", "late"

    def run(self, kind: str, *what: Any) -> None:
        if kind == "event":
            for instruction in self.machine.apply(what[0], self.executed):
                if isinstance(instruction, told.Link):
                    self.lanes[f"m{instruction.executor}"] = NEVER
                elif isinstance(instruction, told.Unlink):
                    del self.lanes[f"m{instruction.executor}"]
        else:
            self._frame(*what)
        self.mark = max(self.mark, min(self.lanes.values(), default=NEVER))

    def _frame(self, way: Way, frame: Any) -> None:
        if frame[0] == "count":
            _, key, count, record, late = frame
            if late:
                self.late.append(record)
            if record.time < self.mark and not record.late:
                raise Violation(f"{frame} of {way[0]} is late: the consumer's watermark is {self.mark}")
            self.counts.setdefault(key, []).append((count, record))
        elif frame[0] == "window":
            _, key, start, count = frame
            if start + WINDOW - 1 < self.mark:
                raise Violation(f"{frame} of {way[0]} is late: the consumer's watermark is {self.mark}")
            if (key, start) in self.windows:
                raise Violation(f"the window {start} of key {key} came twice")
            self.windows[key, start] = count
        elif way[0] in self.lanes:
            self.lanes[way[0]] = END if frame[0] == "end" else frame[1]


__all__ = [
    "ConsumerNode", "Event", "ExchangeError", "MemberNode", "Node", "ProducerNode", "Record", "Violation",
    "Way", "group_of",
]  # fmt: skip
