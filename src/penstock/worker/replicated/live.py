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
from penstock.worker.replicated.frames import read_body
from penstock.worker.replicated.outputs import Gatherer, SinkGatherer
from penstock.worker.sinks import naming

SINK_LINES = 1 << 16
"""Sinks are output channels of the machine, numbered from here."""


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
    outlets: list[EdgeOutlet]
    sink_lines: dict[int, SinkGatherer]
    draws: Draws
    sources: dict[str, Source]
    """Source steps of this stage."""
    on_aligned: Callable[[int], None]
    lanes: list[Partition] = field(default_factory=list)
    sinks: dict[str, Any] = field(default_factory=dict)
    """None: what sinks have prepared is not part of this state."""
    ended: bool = False
    restored_finished: bool = False
    records_in: int = 0
    taken: int = 0
    """The last durable checkpoint whose barriers were executed."""

    def __post_init__(self) -> None:
        self.aligner = Aligner(self.inbounds)
        for inbound in self.inbounds.values():
            inbound.entry.advance(inbound.lane, MIN_TIME)

    # ---- positions --------------------------------------------------------------------------------------------------

    def frame(self, channel: int, data: bytes, piece: int) -> Iterator[int]:
        """Execute a frame, at most `piece` records at once; yields the number of records after each piece."""
        body = read_body(data)
        inbound = self.inbounds[channel]
        if body.kind == Kind.DATA:
            with naming(inbound.channel.edge.target_step, "what came in cannot be read: "):
                batch = decode_batch(body.payload, body.flags, inbound.lane, body.origin)
            self.records_in += len(batch)
            while isinstance(batch, Rows) and len(batch) > piece:
                first, batch = batch.cut(piece)
                inbound.entry.send(first)
                yield len(first)
            inbound.entry.send(batch)
            yield len(batch)
            inbound.advance(body.watermark)
        elif body.kind == Kind.WATERMARK:
            inbound.advance(body.watermark)
        elif body.kind == Kind.BARRIER:
            answer = self.aligner.on_barrier(channel, body.checkpoint)
            if isinstance(answer, Aligned):
                self._aligned(answer.checkpoint)
        elif body.kind == Kind.END:
            inbound.ended = True
            inbound.advance(END_TIME)
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
                for step, partition, number, offset in opened:
                    self._open(step, partition, number, codec.loads(offset))
            case ["checkpoint", checkpoint]:
                self._aligned(checkpoint)
            case _:
                raise CheckpointError(f"the order log has an event that this release does not know: {content!r:.80}")

    def emitted(self) -> list[tuple[int, bytes]]:
        """What the position emitted, in an order that is the same in every replica."""
        out = [(number, body) for number, gatherer in self.gatherers.items() for body in gatherer.take()]
        return out + [(number, body) for number, sink in self.sink_lines.items() for body in sink.take()]

    def blocked(self) -> set[int]:
        """Channels that wait behind a barrier."""
        return {number for number in self.inbounds if self.aligner.blocked(number)}

    def _lane(self, number: int) -> Partition:
        return self.lanes[number - len(self.inbounds)]

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
        for gatherer in self.gatherers.values():
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
                inbound.advance(watermark)
            if ended:
                self.aligner.on_end(number)
        self.aligner.load(*state.aligner)
        for outlet, turn in zip(self.outlets, state.turns, strict=True):
            outlet.turn = turn
        for number, told in state.told.items():
            self.gatherers[number].told = told
        self.ended, self.taken, self.records_in = part.finished, state.taken, state.records_in

    def restore(self, parts: list[snapshot.Part]) -> None:
        """Begin with this executor's share of a durable checkpoint."""
        snapshot.restore(self, self.executors, parts)
        for step, source in self.sources.items():
            offsets = snapshot.offsets_of(parts, step)
            for partition in list(source.shares(self.executors))[self.id.index :: self.executors]:
                offset = source.restored(partition, offsets, self.executors)
                if partition in offsets or offset is not None:
                    self._open(step, partition, len(self.inbounds) + len(self.lanes), offset)
        self.emitted()


class LiveBuilder(Assembly):
    """Builds the live part of a replica."""

    def __init__(self, model: Model, executor_id: ExecutorId, plan: tuple[Channel, ...]) -> None:
        self.lines: dict[str, SinkGatherer] = {}
        super().__init__(model, executor_id, plan, Draws())

    def build(self, on_aligned: Callable[[int], None]) -> Live:
        """An empty one."""
        gatherers: dict[int, Gatherer] = {}
        outlets: list[EdgeOutlet] = []
        exits: dict[tuple[str, int], list[Outlet]] = {}
        for edge in self.graph.topology.edges:
            mine = [channel for channel in self.outgoing if channel.edge.id == edge.id]
            for channel in mine:
                gatherers[channel.id] = Gatherer(channel)
            if mine:
                outlet = EdgeOutlet(edge, [gatherers[channel.id] for channel in mine], self.id.index)
                outlets.append(outlet)
                exits.setdefault((edge.source_step, edge.source_output), []).append(outlet)
        chain = build_chain(self.graph, self.id.stage, self.operator, exits)
        inbounds = {
            channel.id: Input(channel, lane, chain.entry(channel.edge.target_step, channel.edge.target_port))
            for lane, channel in enumerate(self.incoming)
        }
        assert self.draws is not None
        sources: dict[str, Source] = {}
        for name in self.graph.topology.stages[self.id.stage].steps:
            source = getattr(self.graph.steps[name], "source", None)
            if self.graph.steps[name].kind == "source" and isinstance(source, Source):
                sources[name] = source
        lines = {number: self.lines[name] for number, name in sink_lines(self).items()}
        return Live(
            self, self.id, self.executors, chain, inbounds, gatherers, outlets, lines, self.draws, sources, on_aligned
        )

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
