"""A model's executors inside one worker: built from the graph, connected, started, released."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from penstock.clock import Clock
from penstock.errors import UsageError
from penstock.exchange.channel import Receiver, Sender
from penstock.exchange.replica.assignment import Assignment
from penstock.exchange.split.routing import Routing
from penstock.flow.batch import MIN_TIME
from penstock.flow.chain import build_chain
from penstock.flow.config import Scope, current
from penstock.flow.connector import Sink, Source
from penstock.flow.graph import Graph, Step
from penstock.flow.operator import Outlet, StepContext
from penstock.placement.plan import Channel, channels
from penstock.worker import snapshot
from penstock.worker.assembly import DEAD_LETTER, Assembly
from penstock.worker.channels import EdgeOutlet, Inbound, Item, Outbound
from penstock.worker.executor import Executor
from penstock.worker.messages import Connect, ExecutorId, Load, Message
from penstock.worker.metrics import LatencyHistogram
from penstock.worker.replicated.frames import Letter, write_letter
from penstock.worker.sinks import SinkOperator
from penstock.worker.snapshot import Part
from penstock.worker.sources import Lane, open_lanes

if TYPE_CHECKING:
    from penstock.worker.replicated.executor import ReplicatedExecutor
    from penstock.worker.replicated.wiring import Wiring

AnyExecutor: TypeAlias = "Executor | ReplicatedExecutor"

MOST_CHANNELS = 1 << 16
"""Frames have 16 bits for a model's channel."""


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

    @property
    def endpoint(self) -> str:
        """Where this worker is reached."""
        ...

    def reconnect(self, endpoint: str) -> None:
        """A peer is silent: a connection that broke, or was refused too early, is made anew by the next frame."""
        ...

    def snapshot(self, model: Model, executor: Executor, checkpoint: int) -> None:
        """Take and store an executor's state."""
        ...

    def finished(self, model: Model, executor: Executor) -> None:
        """An executor has processed all its input."""
        ...

    def ended(self, model: Model, executor: ExecutorId) -> None:
        """The same of a replicated one."""
        ...

    def store(self, model: Model, executor: ExecutorId, checkpoint: int, data: bytes | None, pause: float) -> None:
        """Make an executor's part of a durable checkpoint durable, and say so. `None`: it could not be taken."""
        ...

    def part(self, model: Model, executor: ExecutorId, checkpoint: int) -> tuple[int, Part | None]:
        """A replicated executor's part of a complete durable checkpoint, `None` when it has none there; of a later one
        when this one has been removed. Raises `CheckpointError`."""
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
    executors: dict[ExecutorId, AnyExecutor]
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
    records: dict[str, Assignment] = field(default_factory=dict)
    """With replicas: the leader's record of each executor."""
    replicas: dict[str, str] = field(default_factory=dict)
    """Replica name -> the endpoint of its worker."""
    checkpoint: int | None = None
    """The last durable checkpoint that is complete."""
    routings: dict[int, Routing] = field(default_factory=dict)
    """As the leader last said; see `Connect`, as for the next."""
    members: dict[str, int] = field(default_factory=dict)
    wiring: Wiring | None = None
    """The channels of replicated executors."""
    migrate: Callable[[str, Any], Any] | None = None
    """The author's: see `penstock.worker.replicated.migration`."""

    def replicated(self) -> list[ReplicatedExecutor]:
        """The replicas here; none with recovery `none`."""
        if not self.load.replicas:
            return []
        from penstock.worker.replicated.executor import ReplicatedExecutor

        return [e for e in self.executors.values() if isinstance(e, ReplicatedExecutor)]

    def plain(self) -> list[Executor]:
        """The executors here that are not replicated."""
        return [e for e in self.executors.values() if isinstance(e, Executor)]

    def post(self, endpoint: str, letter: Letter) -> None:
        """Send a message to a replica, here or elsewhere."""
        if endpoint == self.around.endpoint:
            self.deliver(letter)
        else:
            self.around.send(endpoint, write_letter(self.number, letter))

    def deliver(self, letter: Letter) -> None:
        """A message to a replica here."""
        executor = self.executors.get(ExecutorId(letter.stage, letter.index))
        if executor is None or isinstance(executor, Executor):
            self.refused += 1
        else:
            executor.offer(letter.message, letter.sender)

    def reconnect(self, names: set[str]) -> None:
        """These executors or replicas do not answer: connections to their workers are made anew."""
        here = self.around.endpoint
        for endpoint in {self.endpoints.get(name) or self.replicas.get(name) for name in names} - {None, here}:
            self.around.reconnect(str(endpoint))

    def release(self, executors: list[ExecutorId]) -> list[Exception]:
        """Drop single replicas."""
        errors: list[Exception] = []
        for executor_id in executors:
            executor = self.executors.pop(executor_id, None)
            if executor is not None:
                errors += executor.close(well=False)
                self.counters.pop(executor_id, None)
        return errors

    def connect(self, message: Connect) -> None:
        """Learn where executors are, and which incarnations they have. Channels to a new incarnation start anew; what
        the old one had not confirmed is counted as lost."""
        self.endpoints = message.endpoints
        self.records, self.replicas = message.records, message.replicas
        self.checkpoint = message.checkpoint
        self.routings, self.members = message.routings, message.members
        for replica in self.replicated():
            replica.assigned()
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
        for replica in self.replicated():
            replica.start()

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
        for executor in self.plain():
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
            if load.replicas:
                _replica(model, executor_id, plan, parts.get(executor_id.stage, []))
                continue
            _Builder(model, executor_id, plan, parts.get(executor_id.stage, [])).build()
        for number, outbound in model.outbounds.items():
            outbound.target = model.inbounds.get(number)
    except BaseException:
        model.close(well=False)
        raise
    return model


def _replica(model: Model, executor_id: ExecutorId, plan: tuple[Channel, ...], parts: list[snapshot.Part]) -> None:
    from penstock.worker.replicated.executor import ReplicatedExecutor

    replica = model.load.replicas[str(executor_id)]
    model.executors[executor_id] = ReplicatedExecutor(model, executor_id, plan, replica, parts)


class _Builder(Assembly):
    """Builds one executor of a model."""

    def __init__(
        self, model: Model, executor_id: ExecutorId, plan: tuple[Channel, ...], parts: list[snapshot.Part]
    ) -> None:
        self.parts = parts
        self.epoch = (model.load.epoch.term, model.load.epoch.counter)
        self.stalled: set[Outbound] = set()
        self.sinks: dict[str, SinkOperator] = {}
        self.latency = LatencyHistogram()
        super().__init__(model, executor_id, plan)

    def build(self) -> None:
        """Wire, open, restore, and enter the executor into the model."""
        exits, outbounds = self._exits()
        chain = build_chain(self.graph, self.id.stage, self.operator, exits)
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

    def sink(self, ctx: StepContext, sink: Sink) -> SinkOperator:
        operator = SinkOperator(ctx, sink.open(self.connector(ctx)), self.latency)
        self.sinks[ctx.step] = operator
        return operator

    def dead_letter(self, letter: Any) -> None:
        self.sinks[DEAD_LETTER].take(letter)

    def _lanes(self, step: Step, outlet: Outlet, first: int) -> list[Lane]:
        source = getattr(step, "source", None)
        assert isinstance(source, Source)
        return open_lanes(
            step=step.name,
            source=source,
            ctx=self.connector(self.context(step.name)),
            outlet=outlet,
            first=first,
            offsets=snapshot.offsets_of(self.parts, step.name),
            idle_after=self.load.settings.idle_lane,
        )


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
