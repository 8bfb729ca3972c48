"""Key groups on their way, as the part of a replica that computes sees them: what `penstock.exchange.split` says is
done to its channels, its routing and its keyed state. See docs/split.md.

Like everything in `Live` this is changed by log positions alone. What the leader says, and what is said to it, is the
business of `penstock.worker.replicated.shifts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from penstock import codec
from penstock.errors import CheckpointError
from penstock.exchange.frame import Kind
from penstock.exchange.keys import key_group
from penstock.exchange.split import routing
from penstock.exchange.split.consumer import Consumer
from penstock.exchange.split.instructions import (
    Adopt,
    Advance,
    Cut,
    Discard,
    Finish,
    Forget,
    Instruction,
    Link,
    Pass,
    Route,
    Stage,
    Tell,
    Thaw,
    Unlink,
)
from penstock.exchange.split.member import Member, MemberState
from penstock.exchange.split.messages import Barrier, Event, Frame, Open, Outcome, Piece, Switch, Verdict
from penstock.exchange.split.party import Party, Progress
from penstock.exchange.split.producer import Producer, ProducerState
from penstock.exchange.split.routing import Routing, Shift
from penstock.flow.batch import END_TIME, IDLE, MIN_TIME
from penstock.flow.event_time import Tracker
from penstock.flow.graph import EdgeShape
from penstock.placement.plan import Channel
from penstock.worker.messages import ExecutorId
from penstock.worker.replicated.frames import SHIFT, write_body
from penstock.worker.replicated.outputs import Gatherer
from penstock.worker.replicated.routed import RoutedOutlet
from penstock.worker.replicated.wiring import Wiring

if TYPE_CHECKING:
    from penstock.worker.replicated.live import Live

_KEYS_AT_ONCE = 2000
"""Keys in one piece of a state."""

_frames: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Barrier | Verdict | Piece)
_events: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Open | Switch | Outcome)


class Kept(msgspec.Struct, array_like=True):
    """What a replica's state contains of shifts."""

    inputs: list[int]
    outputs: list[int]
    """Channels that are linked."""
    member: MemberState | None
    producers: dict[int, ProducerState]
    consumers: dict[int, Progress]
    aside: list[bytes]
    """What was cut out."""
    staged: list[bytes]


_kept = msgspec.msgpack.Decoder(Kept)


def pack_event(event: Event) -> bytes:
    """As the order log has it."""
    return msgspec.msgpack.encode(event)


class Shifting:
    """The parties that one executor is: a member of its own stage, a producer of others, a consumer of others."""

    def __init__(
        self,
        executor: ExecutorId,
        wiring: Wiring,
        counts: Mapping[int, int],
        routings: Mapping[int, Routing],
        birth: int = 0,
    ) -> None:
        self._id, self.wiring, self._birth = executor, wiring, birth
        self.member: Member | None = None
        self.producers: dict[int, Producer] = {}
        self.consumers: dict[int, Consumer] = {}
        self.aside: dict[str, tuple[dict[Any, Any], Any]] = {}
        """Step -> what was cut out of it."""
        self.staged: list[bytes] = []
        self.loose: list[tuple[int, bytes]] = []
        """Pieces that the present position emits."""
        self.outlets: dict[int, RoutedOutlet] = {}
        """By edge."""
        self.position = 0
        """The log position that is being executed."""
        self._marks: dict[int, Tracker] = {}
        """Edge -> this executor's event time."""
        self._leaving: list[int] = []
        """Channels on which nothing follows this position."""
        name, edges = str(executor), wiring.topology.edges
        for stage in wiring.topology.stages:
            if not stage.keyed:
                continue
            record = routings.get(stage.id) or routing.first(counts[stage.id])
            into = [edge for edge in edges if edge.target_stage == stage.id and edge.kind == "shuffle"]
            if stage.id == executor.stage:
                shift = record.shift
                newcomer = shift is not None and shift.newcomer == name and record.undecided
                self.member = Member(name, record, (), newcomer=newcomer)
            mine = [edge.id for edge in into if edge.source_stage == executor.stage]
            if mine:
                self.producers[stage.id] = Producer(name, record, mine)
            if any(edge.source_stage == stage.id and edge.target_stage == executor.stage for edge in edges):
                self.consumers[stage.id] = Consumer(name, record)
        self._live: Live | None = None

    @property
    def live(self) -> Live:
        """The part of the replica that this belongs to."""
        assert self._live is not None
        return self._live

    def begin(self, live: Live) -> None:
        """The channels are there."""
        self._live = live
        if self.member is not None:
            self.member.giver.inputs |= live.inbounds.keys()

    def parties(self) -> Iterable[tuple[int, Party]]:
        """Every party, with the stage whose routing it follows."""
        if self.member is not None:
            yield self._id.stage, self.member
        yield from self.producers.items()
        yield from self.consumers.items()

    @property
    def ready(self) -> bool:
        """Whether further input may be taken, for all that is held back."""
        return all(producer.ready for producer in self.producers.values())

    @property
    def holding(self) -> bool:
        """Whether something is held back."""
        return any(producer.shift is not None for producer in self.producers.values())

    # ---- building ---------------------------------------------------------------------------------------------------

    def outlet(self, edge: EdgeShape, gatherers: Iterable[Gatherer]) -> RoutedOutlet | None:
        """The outlet of a producer; `None`: the edge leads to no keyed stage."""
        producer = self.producers.get(edge.target_stage)
        if producer is None or edge.id not in producer.edges:
            return None
        there = {gatherer.channel.consumer_index: gatherer for gatherer in gatherers}
        outlet = self.outlets[edge.id] = RoutedOutlet(edge, there, producer, self._id.index)
        return outlet

    # ---- log positions ----------------------------------------------------------------------------------------------

    def event(self, stage: int, data: bytes) -> None:
        """What the leader said has become an event of the log."""
        event = _events.decode(data)
        if stage in self.producers:
            self._do(stage, self.producers[stage].apply(event, self.position))
        elif stage in self.consumers:
            self._do(stage, self.consumers[stage].apply(event, self.position))
            if isinstance(event, Outcome):
                self.live.aligner.settle()
        elif self.member is not None:
            self._do(stage, self.member.apply(event, self.position))

    def frame(self, channel: int, payload: memoryview) -> None:
        """A barrier, verdict or piece came in."""
        member, frame = self.member, _frames.decode(payload)
        if member is None:
            return
        if isinstance(frame, Barrier):
            told = member.on_barrier(channel, frame)
        elif isinstance(frame, Verdict):
            told = member.on_verdict(frame, self.position)
        else:
            told = member.on_piece(frame, self.position)
        self._do(self._id.stage, told)

    def heard(self, edge: int, lane: int, watermark: int) -> None:
        """The watermark of an input channel moved."""
        if self.member is None:
            return
        tracker = self._marks.setdefault(edge, Tracker())
        before = tracker.current
        now = tracker.update(0, lane, watermark)
        if now != before and now not in (MIN_TIME, IDLE):
            self.member.advance(edge, now, self.position)

    def ended(self, channel: int) -> None:
        """An input channel has ended."""
        if self.member is not None:
            self._do(self._id.stage, self.member.on_end(channel))

    def end(self) -> set[int]:
        """All results have been made: the channels on which END must not be said yet."""
        untold: set[int] = set()
        for producer in self.producers.values():
            for edge in producer.edges:
                for executor in producer.end(edge):
                    gatherer = self.outlets[edge].gatherers.get(executor)
                    untold |= set() if gatherer is None else {gatherer.channel.id}
        return untold

    def left(self) -> None:
        """The position is over."""
        for number in self._leaving:
            self.live.gatherers.pop(number, None)
        self._leaving, self.loose = [], []

    # ---- instructions -----------------------------------------------------------------------------------------------

    def _do(self, stage: int, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Link(executor=executor):
                    self._link(stage, executor)
                case Unlink(executor=executor):
                    self._unlink(stage, executor)
                case Route():
                    for edge in self.producers[stage].edges:
                        self.outlets[edge].route(instruction)
                case Tell(edge=edge, executor=executor, frame=frame):
                    self.outlets[edge].gatherers[executor].put(SHIFT, msgspec.msgpack.encode(frame))
                case Pass(edge=edge, executor=executor, content=content):
                    self.outlets[edge].release(executor, content)
                case Advance(edge=edge, executor=executor, watermark=watermark):
                    self.outlets[edge].gatherers[executor].watermark = watermark
                case Finish(edge=edge, executor=executor):
                    self.outlets[edge].gatherers[executor].signal(Kind.END)
                case Cut(shift=shift):
                    self._cut(shift)
                case Forget(shift=shift):
                    self.aside = {}
                    if shift.retires:
                        self.live.retire()
                case Thaw():
                    self._take_over(self.aside)
                    self.aside = {}
                case Stage(contents=contents):
                    self.staged = list(contents)
                case Adopt(marks=marks):
                    self._adopt(marks)
                case Discard():
                    self.staged = []

    def _link(self, stage: int, executor: int) -> None:
        producer = self.producers.get(stage)
        shift = (producer or self.consumers[stage]).progress.opened
        assert shift is not None
        birth = shift.id[1]
        if producer is not None:
            for edge in producer.edges:
                channel = self.wiring.between(edge, self._id.index, executor, (self._birth, birth))
                outlet = self.outlets[edge]
                gatherer = self._open_output(channel)
                gatherer.watermark = outlet.watermark
                if edge in producer.ended:
                    gatherer.signal(Kind.END)
            return
        for shape in self.wiring.topology.edges:
            if (shape.source_stage, shape.target_stage) == (stage, self._id.stage):
                self._open_input(self.wiring.between(shape.id, executor, self._id.index, (birth, self._birth)))

    def _open_output(self, channel: Channel) -> Gatherer:
        live = self.live
        gatherer = live.gatherers[channel.id] = Gatherer(channel)
        live.gatherers = dict(sorted(live.gatherers.items()))
        self.outlets[channel.edge.id].gatherers[channel.consumer_index] = gatherer
        return gatherer

    def _open_input(self, channel: Channel) -> None:
        self.live.link(channel)
        if self.member is not None:
            self.member.giver.inputs.add(channel.id)

    def _unlink(self, stage: int, executor: int) -> None:
        if stage in self.producers:
            for edge in self.producers[stage].edges:
                gatherer = self.outlets[edge].gatherers.pop(executor, None)
                if gatherer is not None:
                    self._leaving.append(gatherer.channel.id)
            return
        for number, inbound in list(self.live.inbounds.items()):
            channel = inbound.channel
            if (channel.producer_stage, channel.producer_index) == (stage, executor):
                self.live.unlink(number)
                if self.member is not None:
                    self.member.giver.inputs.discard(number)

    # ---- keyed state ------------------------------------------------------------------------------------------------

    def _cut(self, shift: Shift) -> None:
        moving = frozenset(shift.groups)
        for name, operator in self.live.chain.keyed().items():
            self.aside[name] = operator.give_up(lambda key: key_group(key) in moving)
        marks = {
            edge: tracker.current
            for edge, tracker in self._marks.items()
            if tracker.current not in (MIN_TIME, IDLE, END_TIME)
        }
        assert self.member is not None
        number = self.wiring.pieces(self._id.stage, shift).id
        for piece in self.member.pieces(self._written(self.aside), marks):
            self.loose.append((number, write_body(SHIFT, msgspec.msgpack.encode(piece))))

    def _written(self, states: Mapping[str, tuple[dict[Any, Any], Any]]) -> list[bytes]:
        operators, contents = self.live.chain.keyed(), list[bytes]()
        for name, (values, progress) in states.items():
            keys = list(values)
            for at in range(0, len(keys), _KEYS_AT_ONCE):
                some = keys[at : at + _KEYS_AT_ONCE]
                plain = [operators[name].dump(values[key]) for key in some]
                contents.append(msgspec.msgpack.encode([name, codec.pack(some), codec.pack(plain), progress]))
        return contents

    def _read(self, contents: Iterable[bytes]) -> dict[str, tuple[dict[Any, Any], Any]]:
        operators, states = self.live.chain.keyed(), dict[str, tuple[dict[Any, Any], Any]]()
        for content in contents:
            if content is None:
                continue  # nothing of the groups was there
            name, keys, plain, progress = msgspec.msgpack.decode(content)
            values = map(operators[name].load, codec.unpack(plain))
            states.setdefault(name, ({}, progress))[0].update(zip(codec.unpack(keys), values, strict=True))
        return states

    def _take_over(self, states: Mapping[str, tuple[dict[Any, Any], Any]]) -> None:
        operators = self.live.chain.keyed()
        for name, (values, progress) in states.items():
            operators[name].take_over(values, progress)

    def _adopt(self, marks: Mapping[int, int]) -> None:
        for inbound in list(self.live.inbounds.values()):
            mark = marks.get(inbound.channel.edge.id, MIN_TIME)
            idle = inbound.watermark == IDLE
            if idle or inbound.watermark < mark:
                self.live.advance(inbound, mark)
                if idle:
                    self.live.advance(inbound, IDLE)
        states, self.staged = self._read(self.staged), []
        self._take_over(states)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def dump(self) -> bytes:
        """What belongs into the replica's state."""
        live = self.live
        return msgspec.msgpack.encode(
            Kept(
                sorted(live.inbounds),
                sorted(live.gatherers),
                None if self.member is None else self.member.dump(),
                {stage: producer.dump() for stage, producer in self.producers.items()},
                {stage: consumer.dump() for stage, consumer in self.consumers.items()},
                self._written(self.aside),
                self.staged,
            )
        )

    def link(self, data: bytes) -> Kept:
        """The channels that there were, before their event time is told."""
        try:
            kept = _kept.decode(data)
        except msgspec.MsgspecError as error:
            raise CheckpointError(f"what a replica's state says of its channels cannot be read: {error}") from error
        live = self.live
        for number in live.inbounds.keys() - set(kept.inputs):
            live.unlink(number)
        for number in sorted(set(kept.inputs) - live.inbounds.keys()):
            live.link(self.wiring.channel(number))
        for number in live.gatherers.keys() - set(kept.outputs):
            channel = live.gatherers.pop(number).channel
            self.outlets[channel.edge.id].gatherers.pop(channel.consumer_index, None)
        for number in sorted(set(kept.outputs) - live.gatherers.keys()):
            self._open_output(self.wiring.channel(number))
        return kept

    def load(self, kept: Kept, told: Mapping[int, int]) -> None:
        """Go on; `told`: output channel -> the watermark that its consumer has heard."""
        if self.member is not None and kept.member is not None:
            self.member.load(kept.member)
        for stage, producer in self.producers.items():
            if stage in kept.producers:
                self._load_producer(producer, kept.producers[stage], told)
        for stage, consumer in self.consumers.items():
            if stage in kept.consumers:
                consumer.load(kept.consumers[stage])
        if not any(c.progress.opened and c.progress.opened.id > c.progress.settled for c in self.consumers.values()):
            self.live.aligner.settle()
        self.aside = self._read(kept.aside)
        self.staged = kept.staged

    def _load_producer(self, producer: Producer, state: ProducerState, told: Mapping[int, int]) -> None:
        producer.load(state)
        shift = producer.shift
        for edge in producer.edges:
            outlet = self.outlets[edge]
            outlet.route(producer.route())
            for executor in () if shift is None else (shift.giver, shift.taker):
                gatherer = outlet.gatherers[executor]
                gatherer.watermark = told[gatherer.channel.id]
