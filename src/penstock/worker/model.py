"""A model's executors inside one worker: built from the graph, connected, started, released."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from penstock.clock import Clock
from penstock.connectors.json_lines import jsonable
from penstock.errors import StepError, UsageError
from penstock.exchange.channel import Receiver, Sender
from penstock.flow import failure
from penstock.flow.batch import MIN_TIME
from penstock.flow.chain import build_chain
from penstock.flow.config import Scope, current
from penstock.flow.connector import ConnectorContext, Sink, Source, connector_context
from penstock.flow.graph import Graph, Step
from penstock.flow.operator import FailurePolicy, Operator, Outlet, StepContext
from penstock.placement.plan import Channel, channels
from penstock.worker import snapshot
from penstock.worker.channels import EdgeOutlet, Inbound, Item, Outbound
from penstock.worker.executor import Executor
from penstock.worker.messages import Collected, Connect, ExecutorId, Load, Message
from penstock.worker.metrics import LatencyHistogram
from penstock.worker.sinks import SinkOperator
from penstock.worker.sources import Lane, open_lanes

DEAD_LETTER = "dead-letter"
"""The name of the sink of each executor that takes what failed."""
MOST_CHANNELS = 1 << 16
"""Frames have 16 bits for a model's channel."""
_COLLECTED_AT_ONCE = 8192
"""Records in one message to the supervisor."""


class Surroundings(Protocol):
    """What a model asks of the worker around it."""

    clock: Clock

    def send(self, endpoint: str, frame: bytes) -> None:
        """Hand a frame to the transport."""
        ...

    def say(self, message: Message) -> None:
        """Tell the supervisor."""
        ...

    def wake(self) -> None:
        """Look again; from any thread."""
        ...

    def snapshot(self, model: Model, executor: Executor, checkpoint: int) -> None:
        """Take and store an executor's state."""
        ...

    def finished(self, model: Model, executor: Executor) -> None:
        """An executor has processed all its input."""
        ...


@dataclass(eq=False)
class Model:
    """A loaded model in this worker."""

    name: str
    number: int
    graph: Graph
    load: Load
    scope: Scope
    """What `ps.config` is while this model's code runs."""
    around: Surroundings
    executors: dict[ExecutorId, Executor]
    outbounds: dict[int, Outbound]
    inbounds: dict[int, Inbound]
    endpoints: dict[str, str]
    consumers: dict[int, Executor]
    """channel -> the executor here that consumes it."""
    counters: dict[ExecutorId, dict[str, Counter[str]]]
    started: bool = False
    refused: int = 0
    """Frames for channels that do not end here."""
    flush_at: float = 0.0
    """When (monotonic) its sinks are to be flushed."""

    def connect(self, message: Connect) -> None:
        """Learn where executors are, and which incarnations they have. Channels to a new incarnation start anew; what
        the old one had not confirmed is counted as lost."""
        self.endpoints = message.endpoints
        epochs = {name: (epoch.term, epoch.counter) for name, epoch in message.epochs.items()}
        for outbound in self.outbounds.values():
            epoch = max(_ends(outbound.channel, epochs, default=outbound.sender.epoch))
            if epoch > outbound.sender.epoch:
                outbound.restart(epoch)
        for inbound in self.inbounds.values():
            epoch = max(_ends(inbound.channel, epochs, default=inbound.receiver.epoch))
            if epoch > inbound.receiver.epoch:
                inbound.receiver.reset(epoch)

    def request(self, checkpoint: int) -> None:
        """A checkpoint begins."""
        for executor in self.executors.values():
            executor.request(checkpoint)

    def drain(self, *, finish: bool) -> None:
        """Sources stop."""
        for executor in self.executors.values():
            executor.drain(finish=finish)

    def start(self) -> None:
        """Open the gates."""
        self.started = True

    def woken(self) -> None:
        """Some connector or operator said that there is something to do."""
        for executor in self.executors.values() if self.started else ():
            executor.woken()

    def consumer(self, channel: Channel) -> str:
        """The endpoint of a channel's consumer."""
        return self.endpoints[f"{channel.consumer_stage}.{channel.consumer_index}"]

    def producer(self, channel: Channel) -> str:
        """The endpoint of a channel's producer."""
        return self.endpoints[f"{channel.producer_stage}.{channel.producer_index}"]

    def lane(self, source: str) -> Lane | None:
        """A partition of `source` that is read here and goes on being read."""
        for executor in self.executors.values():
            for lane in executor.lanes:
                if lane.step == source and not lane.ended and not executor.draining:
                    return lane
        return None

    def close(self, *, well: bool) -> list[Exception]:
        """Release all executors; the errors that came up on the way."""
        return [error for executor in self.executors.values() for error in executor.close(well=well)]


def _ends(channel: Channel, epochs: dict[str, tuple[int, int]], default: tuple[int, int]) -> list[tuple[int, int]]:
    producer = f"{channel.producer_stage}.{channel.producer_index}"
    consumer = f"{channel.consumer_stage}.{channel.consumer_index}"
    return [epochs.get(producer, default), epochs.get(consumer, default)]


def build_model(load: Load, graph: Graph, around: Surroundings, parts: dict[int, list[snapshot.Part]]) -> Model:
    """Build the executors that `load` asks for, gates shut. `parts` are the restored checkpoint's, by stage.

    Raises what opening a source or sink raises; whatever was opened is released then.
    """
    model = Model(load.model, load.number, graph, load, current(), around, {}, {}, {}, {}, {}, {})
    plan = channels(graph.topology, load.counts)
    if len(plan) > MOST_CHANNELS:
        raise UsageError(
            f"{graph.name!r} would need {len(plan):,} channels between its executors; {MOST_CHANNELS:,} are possible",
            remedy="use fewer executors",
        )
    try:
        for executor_id in load.executors:
            _Builder(model, executor_id, plan, parts.get(executor_id.stage, [])).build()
        for number, outbound in model.outbounds.items():
            outbound.target = model.inbounds.get(number)
    except BaseException:
        model.close(well=False)
        raise
    return model


class _Builder:
    """Builds one executor of a model."""

    def __init__(
        self, model: Model, executor_id: ExecutorId, plan: tuple[Channel, ...], parts: list[snapshot.Part]
    ) -> None:
        self.model, self.id, self.parts = model, executor_id, parts
        self.load, self.graph, self.around = model.load, model.graph, model.around
        here = (executor_id.stage, executor_id.index)
        self.incoming = [c for c in plan if (c.consumer_stage, c.consumer_index) == here]
        self.outgoing = [c for c in plan if (c.producer_stage, c.producer_index) == here]
        self.epoch = (self.load.epoch.term, self.load.epoch.counter)
        self.executors = self.load.counts[executor_id.stage]
        self.stalled: set[Outbound] = set()
        self.sinks: dict[str, SinkOperator] = {}
        self.latency = LatencyHistogram()
        self.counters: dict[str, Counter[str]] = {}
        self.policy = self._policy()

    def build(self) -> None:
        """Wire, open, restore, and enter the executor into the model."""
        exits, outbounds = self._exits()
        chain = build_chain(self.graph, self.id.stage, self._operator, exits)
        inbounds: dict[int, Inbound] = {}
        for lane, channel in enumerate(self.incoming):
            inbounds[channel.id] = Inbound(
                channel=channel,
                lane=lane,
                entry=chain.entry(channel.edge.target_step, channel.edge.target_port),
                receiver=Receiver(self.epoch, self.load.settings.credit_bytes),
                acknowledge=partial(_acknowledge, self.model),
            )
        executor = Executor(
            id=self.id,
            chain=chain,
            inbounds=inbounds,
            outbounds=outbounds,
            lanes=[],
            sinks=self.sinks,
            stalled=self.stalled,
            batch_records=self.load.settings.batch_records,
            clock=self.around.clock,
            snapshot=partial(self.around.snapshot, self.model),
            on_finished=partial(self.around.finished, self.model),
            latency=self.latency,
        )
        self.model.executors[self.id] = executor
        self.model.inbounds |= inbounds
        self.model.consumers |= dict.fromkeys(inbounds, executor)
        self.model.outbounds |= outbounds
        self.model.counters[self.id] = self.counters
        for inbound in inbounds.values():
            inbound.entry.advance(inbound.lane, MIN_TIME)
        if self.parts:
            snapshot.restore(executor, self.executors, self.parts)
        for name in self.graph.topology.stages[self.id.stage].steps:
            step = self.graph.steps[name]
            if step.kind == "source":
                executor.lanes += self._lanes(step, chain.outlet(name), len(inbounds) + len(executor.lanes))

    def _exits(self) -> tuple[dict[tuple[str, int], list[Outlet]], dict[int, Outbound]]:
        outbounds: dict[int, Outbound] = {}
        exits: dict[tuple[str, int], list[Outlet]] = {}
        for edge in self.graph.topology.edges:
            mine = [channel for channel in self.outgoing if channel.edge.id == edge.id]
            for channel in mine:
                outbounds[channel.id] = Outbound(
                    channel=channel,
                    sender=Sender(self.epoch, self.load.settings.credit_bytes),
                    deliver=partial(_deliver, self.model),
                    target=None,
                    stalled=self.stalled,
                    limit=self.load.settings.batch_records,
                    number=self.load.number << 16 | channel.id,
                )
            if mine:
                outlet = EdgeOutlet(edge, [outbounds[channel.id] for channel in mine], self.id.index)
                exits.setdefault((edge.source_step, edge.source_output), []).append(outlet)
        return exits, outbounds

    def _context(self, name: str) -> StepContext:
        index, executors = self.id.index, self.executors
        if name == DEAD_LETTER:
            # Every executor of every stage has one: its number must be its own in the whole model, or two of them
            # would write the same file.
            counts = self.load.counts
            index += sum(count for stage, count in counts.items() if stage < self.id.stage)
            executors = sum(counts.values())
        return StepContext(
            step=name,
            index=index,
            executors=executors,
            bounded=self.graph.topology.bounded,
            clock=self.around.clock,
            config=self.load.config,
            on_error=self.policy,
            wake=self.around.wake,
            counters=self.counters.setdefault(name, Counter()),
        )

    def _connector(self, ctx: StepContext) -> ConnectorContext:
        return connector_context(
            ctx,
            self.graph.name,
            on_bad_record=partial(self.policy, ctx),
            checkpointed=self.load.checkpoint_url is not None,
            collect=self._collect,
        )

    def _collect(self, step: str, records: list[Any]) -> None:
        for at in range(0, len(records), _COLLECTED_AT_ONCE):
            part = [jsonable(record) for record in records[at : at + _COLLECTED_AT_ONCE]]
            self.around.say(Collected(self.model.name, step, part))

    def _policy(self) -> FailurePolicy:
        sink = self.graph.on_error
        if not isinstance(sink, Sink):
            return failure.policy(sink)
        self.policy = _fail_again
        ctx = self._context(DEAD_LETTER)
        writer = self._sink(ctx, sink)
        return failure.policy(sink, lambda letter: writer.take(letter))

    def _sink(self, ctx: StepContext, sink: Sink) -> SinkOperator:
        operator = SinkOperator(ctx, sink.open(self._connector(ctx)), self.latency)
        self.sinks[ctx.step] = operator
        return operator

    def _operator(self, step: Step) -> Operator:
        ctx = self._context(step.name)
        sink = getattr(step, "sink", None)
        if step.kind == "sink" and isinstance(sink, Sink):
            return self._sink(ctx, sink)
        return step.operator(ctx)

    def _lanes(self, step: Step, outlet: Outlet, first: int) -> list[Lane]:
        source = getattr(step, "source", None)
        assert isinstance(source, Source)
        return open_lanes(
            step=step.name,
            source=source,
            ctx=self._connector(self._context(step.name)),
            outlet=outlet,
            first=first,
            offsets=snapshot.offsets_of(self.parts, step.name),
            idle_after=self.load.settings.idle_lane,
        )


def _fail_again(ctx: StepContext, record: Any, error: Exception) -> None:
    raise StepError(ctx.step, f"the dead-letter sink itself failed: {error}") from error


def _deliver(model: Model, outbound: Outbound, frame: bytes | Item) -> None:
    if isinstance(frame, bytes):
        model.around.send(model.consumer(outbound.channel), frame)
        return
    frame.inbound.receiver.receive(frame.header.epoch, frame.header.seq, frame.size)
    model.consumers[outbound.channel.id].offer(frame)


def _acknowledge(model: Model, inbound: Inbound, seq: int) -> None:
    """Confirm to the producer, here or elsewhere."""
    outbound = model.outbounds.get(inbound.channel.id)
    if outbound is not None:
        outbound.acknowledged(inbound.receiver.epoch, seq)
        return
    frame = inbound.ack_frame(model.number << 16 | inbound.channel.id, seq)
    model.around.send(model.producer(inbound.channel), frame)
