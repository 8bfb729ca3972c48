"""A shift on real replicas: what the machines decide follows from the log, so a promoted standby decides the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from penstock.exchange.replica import assignment as record
from penstock.exchange.replica.assignment import Mode
from penstock.exchange.replica.instructions import Instruction, Party, Prepare, Send, Work
from penstock.exchange.replica.messages import Complete, Confirm, Data
from penstock.exchange.replica.replica import Replica
from penstock.exchange.split import instructions as told
from penstock.exchange.split import routing
from penstock.exchange.split.member import Member
from penstock.exchange.split.messages import Barrier, Event, Outcome, Piece, Settled, Switch, Verdict
from penstock.exchange.split.producer import Producer
from penstock.exchange.split.routing import Routing

OUT, TO_TAKER = 2, 3
FIRST = routing.first(1)
_preparing = routing.began(FIRST, 0, 1, range(128), ("m0", "p0", "p1"), "m1")
assert _preparing is not None
assert _preparing.shift is not None
SHIFT = _preparing.shift
_switching = routing.switching(_preparing, SHIFT.id, SHIFT.everybody)
assert _switching is not None
_committed = routing.committed(_switching, SHIFT.id)
assert _committed is not None
_abandoned = routing.abandoned(_switching, SHIFT.id)
assert _abandoned is not None
SWITCHING, COMMITTED, ABANDONED = _switching, _committed, _abandoned


class Word(msgspec.Struct, frozen=True, tag="word"):
    """A record."""

    text: str


Body = Word | Barrier | Verdict | Piece


def read(payload: bytes) -> Body:
    return msgspec.msgpack.decode(payload, type=Body)


class Giver:
    """What a worker does for an executor of the stage: it keeps the words it has seen, in order."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.split = Member("m0", FIRST, (0, 1))
        self.live: list[str] = []
        self.aside: list[str] = []

    def execute(self, work: Work) -> list[tuple[int, bytes]]:
        body: Any = work.content if work.channel < 0 else read(work.content)
        if isinstance(body, Word):
            self.live.append(body.text)
            return [(OUT, msgspec.msgpack.encode(Word(f"{len(self.live)} {body.text}")))]
        if isinstance(body, Barrier):
            instructions = self.split.on_barrier(work.channel, body)
        elif isinstance(body, Verdict):
            instructions = self.split.on_verdict(body, work.position)
        else:
            instructions = self.split.apply(body, work.position)
        emitted: list[tuple[int, bytes]] = []
        for instruction in instructions:
            if isinstance(instruction, told.Cut):
                self.aside, self.live = self.live, []
                pieces = self.split.pieces([tuple(self.aside)], {})
                emitted += ((TO_TAKER, msgspec.msgpack.encode(piece)) for piece in pieces)
            elif isinstance(instruction, told.Thaw):
                self.live, self.aside = [*self.aside, *self.live], []
            else:
                self.aside = []
        return emitted


class SwitchingProducer:
    """What a worker does for a producer whose records (events of its log) all belong to moving groups."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.split = Producer("p0", FIRST)
        self.split.progress.opened = SHIFT

    def execute(self, work: Work) -> list[tuple[int, bytes]]:
        if isinstance(work.content, str):
            word = Word(work.content)
            if self.split.route().held is None:
                return [(OUT if self.split.version == 0 else TO_TAKER, msgspec.msgpack.encode(word))]
            self.split.hold(0, work.content, 1)
            return []
        emitted: list[tuple[int, bytes]] = []
        for instruction in self.split.apply(work.content, work.position):
            if isinstance(instruction, told.Tell):
                emitted.append((self._channel(instruction.executor), msgspec.msgpack.encode(instruction.frame)))
            elif isinstance(instruction, told.Pass):
                word = msgspec.msgpack.encode(Word(instruction.content))
                emitted.append((self._channel(instruction.executor), word))
        return emitted

    def _channel(self, executor: int) -> int:
        return TO_TAKER if executor == SHIFT.taker else OUT


class Pair:
    """Two replicas of an executor; `a` is primary, `b` an active standby that protects it."""

    def __init__(self, kind: type) -> None:
        both = record.with_standby(record.first("a"), "b", Mode.ACTIVE)
        assert both is not None
        self.record = both
        self.workers = {
            "a": kind(Replica("a", record.first("a"), [0, 1], [OUT, TO_TAKER])),
            "b": kind(Replica("b", both, [0, 1], [OUT, TO_TAKER])),
        }
        self.a, self.b = self.workers["a"], self.workers["b"]
        self.left: list[Data] = []
        """Frames that have left."""
        self.tell("a", self.a.replica.on_assignment(both))
        self.tell("a", self._snapshot())
        self.turn()
        protected = record.protected(both, "b", both.epoch)
        assert protected is not None
        self.assign(protected)

    def _snapshot(self) -> list[Instruction]:
        cut = self.a.replica.begin_checkpoint(None)
        assert cut is not None
        return self.a.replica.checkpoint(cut, b"")

    def tell(self, name: str, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Prepare):
                self.tell(name, self.workers[name].replica.prepared(instruction.checkpoint.position))
            elif not isinstance(instruction, Send):
                continue
            elif instruction.party is Party.REPLICA:
                target = str(instruction.target)
                self.tell(target, self.workers[target].replica.on_message(instruction.message, name))
            elif isinstance(instruction.message, Data):
                self.left.append(instruction.message)
            else:
                assert not isinstance(instruction.message, Complete) or instruction.message.standby == "b"

    def assign(self, new: record.Assignment) -> None:
        self.record = new
        for name, worker in self.workers.items():
            self.tell(name, worker.replica.on_assignment(new))

    def gets(self, channel: int, seq: int, body: Body) -> None:
        data = Data((1, 1), channel, seq, msgspec.msgpack.encode(body))
        self.tell("a", self.a.replica.on_message(data))
        self.work("a")

    def work(self, name: str) -> None:
        worker = self.workers[name]
        while (work := worker.replica.next_work()) is not None:
            self.tell(name, worker.replica.executed(work, worker.execute(work)))

    def event(self, name: str, content: Event | str) -> None:
        worker = self.workers[name]
        work = worker.replica.event(content)
        assert work is not None
        self.tell(name, worker.replica.executed(work, worker.execute(work)))

    def turn(self) -> None:
        """The log goes to the standby, which executes it and says so."""
        for _ in range(2):
            self.tell("a", self.a.replica.turn())
            self.work("b")
            self.tell("b", self.b.replica.turn())

    def primary_dies(self) -> None:
        self.workers.pop("a")
        self.left.clear()
        new = record.promoted(self.record, "b")
        assert new is not None
        self.assign(new)
        self.work("b")
        for channel in (OUT, TO_TAKER):
            confirm = Confirm((1, 1), channel, 0, -1, -1, new.since)
            self.tell("b", self.b.replica.on_message(confirm))

    def bodies(self, channel: int) -> list[Body]:
        return [read(data.payload) for data in self.left if data.channel == channel]


def giver() -> Pair:
    """Words and both barriers have been executed, but the standby does not know it yet."""
    pair = Pair(Giver)
    pair.gets(0, 0, Word("one"))
    pair.gets(1, 0, Word("two"))
    pair.gets(0, 1, Barrier(SHIFT))
    pair.gets(1, 1, Word("three"))
    pair.gets(1, 2, Barrier(SHIFT))
    assert pair.a.split.giver.cut
    return pair


PIECE = Piece(SHIFT.id, 0, 1, {}, ["one", "two", "three"])


def test_the_state_leaves_when_the_standby_has_the_cut():
    pair = giver()
    assert pair.left == []
    pair.turn()
    assert pair.bodies(TO_TAKER) == [PIECE]
    assert pair.b.split.giver.cut
    assert pair.b.aside == ["one", "two", "three"]


def test_a_promoted_giver_sends_the_same_state_and_takes_it_back_when_the_shift_is_abandoned():
    pair = giver()
    pair.turn()
    pair.primary_dies()
    assert pair.bodies(TO_TAKER) == [PIECE]
    pair.b.split.on_record(SWITCHING)
    assert pair.b.split.due() is None
    pair.b.split.on_record(ABANDONED)
    event = pair.b.split.due()
    assert event == Outcome(SHIFT, False)
    pair.event("b", event)
    assert pair.b.live == ["one", "two", "three"]
    reports = pair.b.split.turn(pair.b.replica.protected_through)
    assert reports == [Settled(SHIFT.id, "m0")]


def test_a_promoted_giver_that_had_not_logged_the_cut_makes_it_anew():
    pair = Pair(Giver)
    pair.gets(0, 0, Word("one"))
    pair.turn()
    pair.gets(0, 1, Barrier(SHIFT))
    pair.gets(1, 0, Barrier(SHIFT))
    assert pair.a.split.giver.cut
    assert not pair.b.split.giver.arrived
    assert pair.bodies(TO_TAKER) == [], "nothing had left"
    pair.primary_dies()
    # The frames had been forwarded: it puts them into an order of its own.
    assert pair.b.split.giver.cut
    assert pair.bodies(TO_TAKER) == [Piece(SHIFT.id, 0, 1, {}, ["one"])]


@pytest.mark.parametrize(("outcome", "channel"), [(COMMITTED, TO_TAKER), (ABANDONED, OUT)])
def test_a_promoted_producer_holds_the_same_records_and_releases_them(outcome: Routing, channel: int):
    pair = Pair(SwitchingProducer)
    pair.event("a", "before")
    pair.event("a", Switch(SHIFT))
    pair.event("a", "held 1")
    assert pair.left == [], "the barrier waits for the standby, too"
    pair.turn()
    assert pair.bodies(OUT) == [Word("before"), Barrier(SHIFT)]
    pair.event("a", "held 2")
    pair.turn()
    pair.primary_dies()
    assert [held.content for held in pair.b.split.held] == ["held 1", "held 2"]
    pair.b.split.on_record(outcome)
    pair.event("b", pair.b.split.due())
    pair.event("b", "after")
    committed = outcome is COMMITTED
    verdict = Verdict(SHIFT.id, committed)
    assert pair.bodies(channel)[-4:] == [verdict, Word("held 1"), Word("held 2"), Word("after")]
    assert pair.bodies(OUT)[:2] == [Word("before"), Barrier(SHIFT)]
    assert pair.b.split.bytes == 0


def test_a_promoted_producer_that_had_not_logged_the_switch_has_said_nothing_of_it():
    pair = Pair(SwitchingProducer)
    pair.event("a", "before")
    pair.turn()
    pair.event("a", Switch(SHIFT))
    pair.event("a", "lost with it")  # its source reads it again
    pair.primary_dies()
    assert pair.bodies(OUT) == [Word("before")]
    pair.b.split.on_record(SWITCHING)
    assert pair.b.split.due() == Switch(SHIFT)
