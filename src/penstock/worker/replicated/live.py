"""The part of a replica that computes: a chain, its inputs' event time, its barriers, its partitions' offsets.

It executes log positions, frames or events, and nothing else changes it: two replicas that execute the same positions
are equal. A replica has one while it is primary or active; a passive one keeps bytes instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from penstock import codec
from penstock.errors import CheckpointError
from penstock.exchange.barrier import Aligned, Aligner
from penstock.exchange.frame import Kind
from penstock.exchange.split import routing
from penstock.flow.batch import END_TIME, IDLE, MIN_TIME, Rows
from penstock.flow.chain import Chain, build_chain
from penstock.flow.connector import Sink, Source
from penstock.flow.draws import Draws
from penstock.flow.operator import Outlet, StepContext
from penstock.placement.plan import Channel
from penstock.worker import snapshot
from penstock.worker.assembly import DEAD_LETTER, Assembly
from penstock.worker.channels import EdgeOutlet
from penstock.worker.messages import ExecutorId
from penstock.worker.model import Model
from penstock.worker.payload import decode_batch
from penstock.worker.replicated.frames import SHIFT, read_body
from penstock.worker.replicated.outputs import Gatherer, SinkGatherer
from penstock.worker.replicated.routed import RoutedOutlet
from penstock.worker.replicated.seen_keys import SeenKeys
from penstock.worker.replicated.shifting import Shifting
from penstock.worker.replicated.wiring import everybody, wiring_of
from penstock.worker.sinks import naming

SINK_LINES = 1 << 16
"""Sinks are output channels of the machine, numbered from here."""


def is_sink(number: int) -> bool:
    """Whether an output channel of the machine is a sink."""
    return SINK_LINES <= number < 2 * SINK_LINES


@dataclass(slots=True, eq=False)
class Input:
    """An input channel as the chain sees it."""

    channel: Channel
    lane: int
    entry: Outlet
    watermark: int = MIN_TIME
    ended: bool = False

    def advance(self, watermark: int) -> None:
        """The producer's watermark moved; it never goes back."""
        if watermark == IDLE or watermark > self.watermark or self.watermark == IDLE:
            self.watermark = watermark
            self.entry.advance(self.lane, watermark)


@dataclass(slots=True, eq=False)
class Partition:
    """A source's partition as the chain sees it: a lane, and the offset after the last record executed."""

    step: str
    partition: str
    number: int
    outlet: Outlet
    offset: Any = None
    ended: bool = False
    idle: bool = False

    def position(self) -> Any:
        """See `Lane.position`."""
        return self.offset


class State(msgspec.Struct, array_like=True):
    """All that a replica's live part remembers; plain."""

    version: int
    part: snapshot.Part
    inputs: dict[int, tuple[int, bool]]
    """channel -> watermark, ended."""
    partitions: list[tuple[str, str, int, Any, bool, bool]]
    """step, partition, lane, packed offset, ended, idle."""
    told: dict[int, int]
    turns: list[int]
    aligner: tuple[int | None, int, list[int]]
    taken: int
    records_in: int
    shifting: bytes = b""
    opened: bool = False


_VERSION = 1
_decoder = msgspec.msgpack.Decoder(State)


@dataclass(eq=False)
class Live:
    """See the module. `on_aligned` hears of each durable checkpoint whose barriers have all been executed."""

    builder: LiveBuilder
    id: ExecutorId
    executors: int
    chain: Chain
    inbounds: dict[int, Input]
    gatherers: dict[int, Gatherer]
    outlets: list[EdgeOutlet | RoutedOutlet]
    sink_lines: dict[int, SinkGatherer]
    draws: Draws
    sources: dict[str, Source]
    """Source steps of this stage."""
    on_aligned: Callable[[int], None]
    shifting: Shifting
    first_lane: int
    """Lanes before this one are those of the channels that there were from the beginning."""
    lanes: list[Partition] = field(default_factory=list)
    sinks: dict[str, Any] = field(default_factory=dict)
    """None: what sinks have prepared is not part of this state."""
    ended: bool = False
    opened: bool = False
    """The log knows the partitions of this executor's sources."""
    restored_finished: bool = False
    records_in: int = 0
    keys: SeenKeys = field(default_factory=SeenKeys)
    """Measured, and no part of the state."""
    taken: int = 0
    """The last durable checkpoint whose barriers were executed."""

    def __post_init__(self) -> None:
        self.aligner = Aligner(self.inbounds)
        for inbound in self.inbounds.values():
            inbound.entry.advance(inbound.lane, MIN_TIME)
        self.shifting.begin(self)

    # ---- channels that come and go ----------------------------------------------------------------------------------

    def link(self, channel: Channel) -> None:
        """Another input channel counts from now on."""
        entry = self.chain.entry(channel.edge.target_step, channel.edge.target_port)
        inbound = Input(channel, self.builder.lane(channel), entry)
        self.inbounds[channel.id] = inbound
        self.aligner.add(channel.id)
        entry.advance(inbound.lane, MIN_TIME)

    def unlink(self, number: int) -> None:
        """It does not count any more."""
        inbound = self.inbounds.pop(number)
        inbound.entry.advance(inbound.lane, END_TIME)
        aligned = self.aligner.remove(number)
        if aligned is not None:
            self._aligned(aligned.checkpoint)

    def advance(self, inbound: Input, watermark: int) -> None:
        """Event time of an input channel moved."""
        inbound.advance(watermark)
        self.shifting.heard(inbound.channel.edge.id, inbound.lane, watermark)

    def retire(self) -> None:
        """Nothing is left to be done here, and nothing will come."""
        if not self.ended:
            self.ended = True
            self._say_end()

    # ---- positions --------------------------------------------------------------------------------------------------

    def frame(self, channel: int, data: bytes, piece: int) -> Iterator[int]:
        """Execute a frame, at most `piece` records at once; yields the number of records after each piece."""
        body = read_body(data)
        if body.kind == SHIFT:
            self.shifting.frame(channel, body.payload)
            return
        inbound = self.inbounds.get(channel)
        if inbound is None:
            return  # of an executor that was started in vain
        if body.kind == Kind.DATA:
            with naming(inbound.channel.edge.target_step, "what came in cannot be read: "):
                batch = decode_batch(body.payload, body.flags, inbound.lane, body.origin)
            self.records_in += len(batch)
            self.keys.seen(batch)
            while isinstance(batch, Rows) and len(batch) > piece:
                first, batch = batch.cut(piece)
                inbound.entry.send(first)
                yield len(first)
            inbound.entry.send(batch)
            yield len(batch)
            self.advance(inbound, body.watermark)
        elif body.kind == Kind.WATERMARK:
            self.advance(inbound, body.watermark)
        elif body.kind == Kind.BARRIER:
            answer = self.aligner.on_barrier(channel, body.checkpoint)
            if isinstance(answer, Aligned):
                self._aligned(answer.checkpoint)
        elif body.kind == Kind.END:
            inbound.ended = True
            self.advance(inbound, END_TIME)
            self.shifting.ended(channel)
            aligned = self.aligner.on_end(channel)
            if aligned is not None:
                self._aligned(aligned.checkpoint)
            self._maybe_finish()

    def event(self, content: Any, records: list[Any] | None = None) -> Iterator[int]:
        """Execute something that is no frame. `records`: those of a `read` that happens now, undecoded."""
        match content:
            case ["read", number, offset, origin, rows]:
                lane = self._lane(number)
                lane.idle = False
                lane.offset = codec.loads(offset)
                if records is None:
                    batch = decode_batch(memoryview(rows), 0, number, origin)
                    assert isinstance(batch, Rows)
                else:
                    batch = Rows(records, lane=number, origin=origin)
                self.records_in += len(batch)
                lane.outlet.send(batch)
                yield len(batch)
            case ["idle", number]:
                lane = self._lane(number)
                lane.idle = True
                lane.outlet.advance(number, IDLE)
            case ["end", number]:
                lane = self._lane(number)
                lane.ended = True
                lane.outlet.advance(number, END_TIME)
                self._maybe_finish()
            case ["lanes", opened]:
                self.opened = True
                for step, partition, number, offset in opened:
                    self._open(step, partition, number, codec.loads(offset))
                self._maybe_finish()  # there may be no partition for this executor
            case ["checkpoint", checkpoint]:
                self._aligned(checkpoint)
            case ["shift", stage, said]:
                self.shifting.event(stage, said)
            case _:
                raise CheckpointError(f"the order log has an event that this release does not know: {content!r:.80}")

    def emitted(self) -> list[tuple[int, bytes]]:
        """What the position emitted, in an order that is the same in every replica."""
        out = [(number, body) for number, gatherer in self.gatherers.items() for body in gatherer.take()]
        out += self.shifting.loose
        self.shifting.left()
        return out + [(number, body) for number, sink in self.sink_lines.items() for body in sink.take()]

    def blocked(self) -> set[int]:
        """Channels that wait behind a barrier."""
        return {number for number in self.inbounds if self.aligner.blocked(number)}

    def _lane(self, number: int) -> Partition:
        return self.lanes[number - self.first_lane]

    def _open(self, step: str, partition: str, number: int, offset: Any) -> Partition:
        lane = Partition(step, partition, number, self.chain.outlet(step), offset)
        self.lanes.append(lane)
        lane.outlet.advance(number, MIN_TIME)
        return lane

    def _aligned(self, checkpoint: int) -> None:
        if checkpoint <= self.taken:
            return
        self.taken = checkpoint
        if not self.ended:
            for gatherer in self.gatherers.values():
                gatherer.signal(Kind.BARRIER, checkpoint)
        for sink in self.sink_lines.values():
            sink.barrier(checkpoint)
        self.on_aligned(checkpoint)

    def _maybe_finish(self) -> None:
        if self.ended or not self._all_ended():
            return
        self.ended = True
        if not self.restored_finished or self.records_in:
            self.chain.finish()
        self._say_end()

    def _say_end(self) -> None:
        untold = self.shifting.end()
        for number, gatherer in self.gatherers.items():
            if number not in untold:
                gatherer.signal(Kind.END)

    def _all_ended(self) -> bool:
        return all(lane.ended for lane in self.lanes) and all(inbound.ended for inbound in self.inbounds.values())

    # ---- state ------------------------------------------------------------------------------------------------------

    def dump(self) -> bytes:
        """Everything that is remembered."""
        state = State(
            _VERSION,
            snapshot.take(self, self.taken),
            {number: (inbound.watermark, inbound.ended) for number, inbound in self.inbounds.items()},
            [(p.step, p.partition, p.number, codec.pack([p.offset]), p.ended, p.idle) for p in self.lanes],
            {number: gatherer.told for number, gatherer in self.gatherers.items()},
            [outlet.turn for outlet in self.outlets],
            self.aligner.plain(),
            self.taken,
            self.records_in,
            self.shifting.dump(),
            self.opened,
        )
        return msgspec.msgpack.encode(state)

    def load(self, data: bytes, migrate: Callable[[snapshot.Part], snapshot.Part] | None = None) -> None:
        """Become what `dump` told of. Call it once, before anything else. Raises `CheckpointError`."""
        try:
            state = _decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise CheckpointError(f"a replica's state cannot be read: {error}") from error
        if state.version != _VERSION:
            raise CheckpointError(f"a replica's state of format {state.version} came in, this release reads {_VERSION}")
        part = state.part if migrate is None else migrate(state.part)
        kept = self.shifting.link(state.shifting) if state.shifting else None
        snapshot.restore_operators(self, part)
        for step, partition, number, offset, ended, idle in state.partitions:
            lane = self._open(step, partition, number, codec.unpack(offset)[0])
            if ended or idle:
                lane.ended, lane.idle = ended, idle
                lane.outlet.advance(number, END_TIME if ended else IDLE)
        for number, (watermark, ended) in state.inputs.items():
            inbound = self.inbounds[number]
            inbound.ended = ended
            if watermark != MIN_TIME:
                self.advance(inbound, watermark)
            if ended:
                self.aligner.on_end(number)
        self.aligner.load(*state.aligner)
        for outlet, turn in zip(self.outlets, state.turns, strict=True):
            outlet.turn = turn
        for number, told in state.told.items():
            self.gatherers[number].told = told
        if kept is not None:
            self.shifting.load(kept, state.told)
        self.ended, self.taken, self.records_in = part.finished, state.taken, state.records_in
        self.opened = state.opened

    def restore(self, parts: list[snapshot.Part]) -> None:
        """Begin with this executor's share of a durable checkpoint."""
        load = self.builder.load
        self.taken = load.restore or 0  # a standby that is promoted must not wait for its barriers
        record = load.routings.get(self.id.stage)
        if self.builder.graph.topology.stages[self.id.stage].keyed:
            record = record or routing.first(self.executors)  # the checkpoint may be of a time with another table
            snapshot.restore_by_table(self, record.table, record.executors, parts)
        else:
            snapshot.restore(self, self.executors, parts)
        for step, source in self.sources.items():
            offsets = snapshot.offsets_of(parts, step)
            for partition in list(source.shares(self.executors))[self.id.index :: self.executors]:
                offset = source.restored(partition, offsets, self.executors)
                if partition in offsets or offset is not None:
                    self._open(step, partition, self.first_lane + len(self.lanes), offset)
        self.emitted()


class LiveBuilder(Assembly):
    """Builds the live part of a replica."""

    def __init__(self, model: Model, executor_id: ExecutorId, plan: tuple[Channel, ...]) -> None:
        self.lines: dict[str, SinkGatherer] = {}
        super().__init__(model, executor_id, plan, Draws())
        self.lanes = {channel.id: lane for lane, channel in enumerate(self.incoming)}
        """Of the channels that there were from the beginning."""
        self.wiring = wiring_of(model)
        members = everybody(self.load.counts, self.load.members)
        self.birth = members.get(str(executor_id), 0)
        self.incoming, self.outgoing = self.wiring.of(executor_id, members)

    def lane(self, channel: Channel) -> int:
        """The lane of an input channel; of one that came later, its number."""
        return self.lanes.get(channel.id, channel.id)

    def _linked(self, channel: Channel) -> bool:
        """Whether an input channel counts from the beginning: that of a newcomer does when that is in the log."""
        record = self.load.routings.get(channel.producer_stage)
        shift = None if record is None or not record.undecided else record.shift
        return shift is None or shift.newcomer != f"{channel.producer_stage}.{channel.producer_index}"

    def _counts(self, channel: Channel) -> bool:
        """The same of an output channel."""
        record = self.load.routings.get(channel.consumer_stage)
        shift = None if record is None or not record.undecided else record.shift
        return shift is None or shift.newcomer != f"{channel.consumer_stage}.{channel.consumer_index}"

    def build(self, on_aligned: Callable[[int], None]) -> Live:
        """An empty one."""
        gatherers: dict[int, Gatherer] = {}
        shifting = Shifting(self.id, self.wiring, self.load.counts, self.load.routings, self.birth)
        outlets: list[EdgeOutlet | RoutedOutlet] = []
        exits: dict[tuple[str, int], list[Outlet]] = {}
        for edge in self.graph.topology.edges:
            mine = [channel for channel in self.outgoing if channel.edge.id == edge.id and self._counts(channel)]
            for channel in mine:
                gatherers[channel.id] = Gatherer(channel)
            if mine:
                ends = [gatherers[channel.id] for channel in mine]
                outlet = shifting.outlet(edge, ends) or EdgeOutlet(edge, ends, self.id.index)
                outlets.append(outlet)
                exits.setdefault((edge.source_step, edge.source_output), []).append(outlet)
        chain = build_chain(self.graph, self.id.stage, self.operator, exits)
        inbounds = {
            channel.id: Input(
                channel, self.lane(channel), chain.entry(channel.edge.target_step, channel.edge.target_port)
            )
            for channel in self.incoming
            if self._linked(channel)
        }
        assert self.draws is not None
        sources: dict[str, Source] = {}
        for name in self.graph.topology.stages[self.id.stage].steps:
            source = getattr(self.graph.steps[name], "source", None)
            if self.graph.steps[name].kind == "source" and isinstance(source, Source):
                sources[name] = source
        lines = {number: self.lines[name] for number, name in sink_lines(self).items()}
        return Live(
            self, self.id, self.executors, chain, inbounds, dict(sorted(gatherers.items())), outlets, lines,
            self.draws, sources, on_aligned, shifting, len(self.lanes),
        )  # fmt: skip

    def sink(self, ctx: StepContext, sink: Sink) -> SinkGatherer:
        line = self.lines[ctx.step] = SinkGatherer(ctx)
        return line

    def dead_letter(self, letter: Any) -> None:
        self.lines[DEAD_LETTER].letter(letter)


def sink_lines(assembly: Assembly) -> dict[int, str]:
    """The numbers of an executor's sinks among its output channels."""
    steps = assembly.graph.topology.stages[assembly.id.stage].steps
    names = [name for name in steps if assembly.graph.steps[name].kind == "sink"]
    if isinstance(assembly.graph.on_error, Sink):
        names.append(DEAD_LETTER)
    return {SINK_LINES + place: name for place, name in enumerate(names)}
