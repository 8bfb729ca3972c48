"""Run a flow inside a test: no processes, no sockets, a clock that moves when told.

`run(flow, {"lines": ["a b", "a"]}).outputs["out"]` is the whole input in, the whole output out. A `Harness` goes
step by step: feed records, let time pass, look at state, take a checkpoint, crash at a record and go on from the
checkpoint. The operators, their fusion into stages, the shuffle and the key groups are the real ones; records do not
leave the process, and what a sink would write is kept in a list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from types import TracebackType
from typing import Any

from penstock import codec
from penstock.clock import FakeClock
from penstock.errors import UsageError
from penstock.exchange.keys import Router
from penstock.flow.batch import END_TIME, IDLE, MIN_TIME, Batch, Rows, as_rows
from penstock.flow.builder import Flow
from penstock.flow.chain import Chain, build_chain
from penstock.flow.connector import ConnectorContext, EndOfInput
from penstock.flow.event_time import Tracker
from penstock.flow.failure import policy
from penstock.flow.graph import EdgeShape, Graph, Step
from penstock.flow.mapreduce import MapReduce
from penstock.flow.operator import KeyedOperator, Operator, Outlet, StepContext
from penstock.flow.steps.source import SourceStep

__all__ = ["Checkpoint", "Crash", "Harness", "Run", "of_program", "run"]


class Crash(Exception):
    """Raised by `Harness.feed` at the record that `crash_at` named."""


@dataclass(frozen=True)
class Run:
    """What came of a whole run."""

    outputs: dict[str, list[Any]]
    """For each sink, the records that reached it."""
    counters: Counter[str]
    """`step.counter` -> number: `parse.skipped`, `stats.late` …"""
    dead_letters: list[dict[str, Any]]
    """What went to the dead-letter sink."""
    state: dict[str, dict[Hashable, Any]]
    """For each keyed step, what a look-up of each key shows at the end."""


@dataclass(frozen=True)
class Checkpoint:
    """A consistent cut: state as bytes (so it is known to be writable), how much input it holds, and the outputs."""

    position: int
    state: bytes
    outputs: dict[str, list[Any]] = field(repr=False)
    counters: Counter[str] = field(repr=False)
    dead_letters: list[dict[str, Any]] = field(repr=False)


def run(
    flow: Flow | Graph,
    inputs: Mapping[str, Iterable[Any]] | None = None,
    *,
    executors: int = 1,
    partitions: int = 1,
    batch_records: int = 1024,
    limit: int = 10_000,
) -> Run:
    """Run `flow` to the end of its input, with every stage in so many `executors`.

    `inputs`: the records of each source, dealt to `partitions` in turn; a source that is not named reads what it is
    connected to, at most `limit` records. Raises `StepError` like a real run, `UsageError` for an unknown source.
    """
    with Harness(flow, executors=executors, partitions=partitions, batch_records=batch_records) as harness:
        given = {name: list(records) for name, records in (inputs or {}).items()}
        for name in given:
            harness.check_source(name)
        for name in harness.graph.topology.sources:
            if name not in given:
                harness.read(name, limit)
            else:
                for partition in range(partitions):
                    harness.feed(name, given[name][partition::partitions], partition=partition)
        harness.finish()
        return Run(
            harness.outputs,
            harness.counters,
            harness.dead_letters,
            {step: harness.states(step) for step in harness.graph.topology.keyed_steps},
        )


class Harness:
    """A flow at work in this process. Use it in a `with` block, or call `close`."""

    def __init__(
        self,
        flow: Flow | Graph,
        *,
        executors: int = 1,
        partitions: int = 1,
        batch_records: int = 1024,
        bounded: bool | None = None,
        clock: FakeClock | None = None,
        restore: Checkpoint | None = None,
    ) -> None:
        """`partitions`: how many lanes each source has. `bounded`: pretend that the input ends, or does not end."""
        self.graph = flow.build() if isinstance(flow, Flow) else flow
        self.clock = clock or FakeClock(1_600_000_000.0)
        self.outputs: dict[str, list[Any]] = {s.name: [] for s in self.graph.steps.values() if s.kind == "sink"}
        self.dead_letters: list[dict[str, Any]] = []
        self._executors, self._partitions, self._batch = executors, partitions, batch_records
        self._bounded = self.graph.topology.bounded if bounded is None else bounded
        self._past: Counter[str] = Counter()
        self._contexts: list[StepContext] = []
        self._log: list[tuple[str, int, Any]] = []
        self._position = 0
        self._crash: tuple[str, int] | None = None
        self._last: Checkpoint | None = restore
        self._finished = False
        self._stages = [self._stage(stage.id) for stage in self.graph.topology.stages]
        if restore is not None:
            self._restore(restore)
        self._open_lanes()

    # -- feeding and time ---------------------------------------------------------------------------------------------

    def feed(self, source: str, records: Iterable[Any], partition: int = 0) -> None:
        """Let `source` read these records from its `partition`; returns when they have gone through the flow."""
        self.check_source(source)
        if self._finished:
            raise UsageError("the input has ended", remedy="feed before finish()")
        if not 0 <= partition < self._partitions:
            raise UsageError(f"there is no partition {partition}", remedy="Harness(flow, partitions=…)")
        self._log += [(source, partition, record) for record in records]
        self._process()

    def read(self, source: str, limit: int = 10_000) -> int:
        """Let `source` read what it is connected to, at most `limit` records; how many there were. When the source says
        that it waits, the clock is moved on."""
        self.check_source(source)
        step = self.graph.steps[source]
        assert isinstance(step, SourceStep)
        ctx = self._context(step, 0)
        taken = 0
        for number, partition in enumerate(step.source.partitions()):
            reader = step.source.open(
                partition,
                None,
                ConnectorContext(
                    flow=self.graph.name,
                    step=source,
                    clock=self.clock,
                    on_bad_record=lambda record, error: ctx.on_error(ctx, record, error),
                ),
            )
            try:
                while taken < limit:
                    records = reader.read(min(self._batch, limit - taken))
                    taken += len(records)
                    self.feed(source, records, partition=number % self._partitions)
                    if not records:
                        at = reader.next_at()
                        if at is None:
                            break
                        self.advance(max(at - self.clock.monotonic(), 0.001))
            except EndOfInput:
                pass
            finally:
                reader.close()
        return taken

    def advance(self, seconds: float) -> None:
        """Let time pass on the clock that the flow sees."""
        self.clock.advance(seconds)
        for chain in self._chains():
            for operator in chain.operators.values():
                operator.poll()
        self._settle()

    def idle(self, source: str, partition: int = 0) -> None:
        """Say that a partition is silent, so that it does not hold event time back."""
        self._outlet(source, partition).advance(self._lane(source, partition), IDLE)

    def finish(self) -> None:
        """End the input: windows close, final results come out."""
        if self._finished:
            return
        self._finished = True
        for source in self.graph.topology.sources:
            for partition in range(self._partitions):
                self._outlet(source, partition).advance(self._lane(source, partition), END_TIME)
        for stage in self._stages:
            for chain in stage:
                chain.finish()

    # -- looking in ---------------------------------------------------------------------------------------------------

    def state(self, step: str, key: Hashable) -> Any:
        """What a look-up of `key` in a keyed step shows. Raises `KeyError` when the step has not seen the key."""
        return self.states(step)[key]

    def states(self, step: str) -> dict[Hashable, Any]:
        """What look-ups of all keys of a keyed step show."""
        found: dict[Hashable, Any] = {}
        for operator in self._keyed(step):
            found.update((key, operator.view(value)) for key, value in operator.state.items())
        return found

    @property
    def counters(self) -> Counter[str]:
        """`step.counter` -> number, over all executors."""
        total = Counter(self._past)
        for ctx in self._contexts:
            total.update({f"{ctx.step}.{name}": number for name, number in ctx.counters.items()})
        return total

    # -- crashing and going on ----------------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """Take a checkpoint, from which `restart` goes on. Raises `CodecError` for state that cannot be written."""
        for chain in self._chains():
            chain.drain()
        keyed: dict[str, list[Any]] = {}
        local: dict[str, list[Any]] = {}
        for chain in self._chains():
            for name, operator in chain.operators.items():
                if isinstance(operator, KeyedOperator):
                    pairs = [[key, operator.dump(value)] for key, value in operator.state.items()]
                    keyed.setdefault(name, []).extend(pairs)
                local.setdefault(name, []).append(operator.dump_local())
        self._last = Checkpoint(
            self._position,
            codec.dumps([keyed, local]),
            {name: list(records) for name, records in self.outputs.items()},
            self.counters,
            list(self.dead_letters),
        )
        return self._last

    def crash_at(self, source: str, record: int) -> None:
        """Let `feed` raise `Crash` in place of processing the `record`-th record (from 0) of `source`."""
        self.check_source(source)
        self._crash = (source, record)

    def restart(self, *, executors: int | None = None) -> Harness:
        """A new harness, as after a crash: from the last checkpoint (or from nothing), with the input after it read
        again. Outputs after the checkpoint are gone, as an exactly-once sink would have it."""
        self.close()
        new = Harness(
            self.graph,
            executors=executors or self._executors,
            partitions=self._partitions,
            batch_records=self._batch,
            bounded=self._bounded,
            clock=self.clock,
            restore=self._last,
        )
        new._log = self._log
        new._process()
        return new

    def close(self) -> None:
        """Release what the operators hold."""
        for chain in self._chains():
            chain.close()

    def __enter__(self) -> Harness:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check_source(self, name: str) -> None:
        """Raise `UsageError` unless the flow has a source called `name`."""
        sources = self.graph.topology.sources
        if name not in sources:
            raise UsageError(f"there is no source {name!r}", remedy=f"the sources are: {', '.join(sources)}")

    # -- the machinery ------------------------------------------------------------------------------------------------

    def _chains(self) -> list[Chain]:
        return [chain for stage in self._stages for chain in stage]

    def _keyed(self, step: str) -> list[KeyedOperator]:
        found = [chain.keyed()[step] for chain in self._chains() if step in chain.keyed()]
        if not found:
            known = ", ".join(self.graph.topology.keyed_steps)
            raise UsageError(f"{step!r} is no keyed step of this flow", remedy=f"keyed steps are: {known or 'none'}")
        return found

    def _stage(self, stage: int) -> list[Chain]:
        return [self._chain(stage, index) for index in range(self._executors)]

    def _chain(self, stage: int, index: int) -> Chain:
        exits: dict[tuple[str, int], list[Outlet]] = {}
        for edge in self.graph.topology.edges:
            if edge.source_stage == stage:
                exits.setdefault((edge.source_step, edge.source_output), []).append(_Channels(self, edge, index))
        return build_chain(self.graph, stage, lambda step: self._operator(step, index), exits)

    def _operator(self, step: Step, index: int) -> Operator:
        ctx = self._context(step, index)
        return _Collect(ctx, self.outputs[step.name]) if step.kind == "sink" else step.operator(ctx)

    def _context(self, step: Step, index: int) -> StepContext:
        ctx = StepContext(
            step=step.name,
            index=index,
            executors=self._executors,
            bounded=self._bounded,
            clock=self.clock,
            on_error=policy(self.graph.on_error, self.dead_letters.append),
            site=step.site,
        )
        self._contexts.append(ctx)
        return ctx

    def _lane(self, source: str, partition: int) -> int:
        return self.graph.topology.sources.index(source) * self._partitions + partition

    def _outlet(self, source: str, partition: int) -> Outlet:
        stage = self.graph.topology.stage_of(source).id
        return self._stages[stage][partition % self._executors].outlet(source)

    def _open_lanes(self) -> None:
        """Every lane is known before the first record, so that none is overtaken."""
        for edge in self.graph.topology.edges:
            for consumer in self._stages[edge.target_stage]:
                for producer in range(self._executors):
                    entry = consumer.entry(edge.target_step, edge.target_port)
                    entry.advance(_channel_lane(edge, producer), MIN_TIME)
        for source in self.graph.topology.sources:
            for partition in range(self._partitions):
                self._outlet(source, partition).advance(self._lane(source, partition), MIN_TIME)

    def _process(self) -> None:
        """Everything that was fed and not yet processed, in batches of neighbours."""
        stop = self._crash_position()
        for (source, partition), run_of in groupby(self._log[self._position : stop], key=lambda item: item[:2]):
            records = [item[2] for item in run_of]
            lane, outlet = self._lane(source, partition), self._outlet(source, partition)
            for start in range(0, len(records), self._batch):
                batch = Rows(records[start : start + self._batch], lane=lane, origin=self.clock.time_ns())
                taken = len(batch)
                outlet.send(batch)
                self._settle()
                self._position += taken
        if stop is not None:
            self.close()
            raise Crash(f"at record {self._crash}")

    def _crash_position(self) -> int | None:
        if self._crash is None:
            return None
        source, record = self._crash
        places = [place for place, item in enumerate(self._log) if item[0] == source]
        return places[record] if record < len(places) and places[record] >= self._position else None

    def _settle(self) -> None:
        for chain in self._chains():
            chain.drain()

    def _restore(self, checkpoint: Checkpoint) -> None:
        keyed, local = codec.loads(checkpoint.state)
        router = Router(self._executors)
        for name in self.graph.steps:
            operators = [chain.operators[name] for chain in self._chains() if name in chain.operators]
            for key, plain in keyed.get(name, []):
                operator = operators[router.executor(key)]
                assert isinstance(operator, KeyedOperator)
                operator.state[key] = operator.load(plain)
            for index, operator in enumerate(operators):
                mine = [plain for plain in local.get(name, [])[index :: self._executors] if plain is not None]
                if mine:
                    operator.load_local(mine)
                if isinstance(operator, KeyedOperator):
                    operator.restored()
        for name, records in checkpoint.outputs.items():
            self.outputs[name].extend(records)
        self.dead_letters.extend(checkpoint.dead_letters)
        self._past.update(checkpoint.counters)
        self._position = checkpoint.position


def _channel_lane(edge: EdgeShape, producer: int) -> int:
    return (edge.id + 1) * 1_000_000 + producer


class _Collect(Operator):
    """A sink that keeps everything."""

    def __init__(self, ctx: StepContext, records: list[Any]) -> None:
        super().__init__(ctx)
        self.records = records

    def process(self, port: int, batch: Batch) -> None:
        self.records.extend(as_rows(batch).records())


class _Channels:
    """The way from one executor to all executors of the next stage: by key, or straight to the one beside it."""

    def __init__(self, harness: Harness, edge: EdgeShape, producer: int) -> None:
        self.harness, self.edge, self.producer = harness, edge, producer
        self.lane = _channel_lane(edge, producer)
        self.router = Router(harness._executors)
        self.tracker = Tracker()

    def _entry(self, consumer: int) -> Outlet:
        stage = self.harness._stages[self.edge.target_stage]
        return stage[consumer].entry(self.edge.target_step, self.edge.target_port)

    def send(self, batch: Batch) -> None:
        self.tracker.wake(0, batch.lane)
        rows = as_rows(batch)
        if self.edge.kind != "shuffle":
            moved = Rows(list(rows.values), rows.keys, rows.times, self.lane, rows.origin)
            self._entry(self.producer).send(moved)
            return
        assert rows.keys is not None
        for consumer, keys, values, times in self.router.split(rows.keys, rows.values, rows.times):
            carried = keys if values is None or not self.edge.needs_values else values
            self._entry(consumer).send(Rows(carried, keys, times, self.lane, rows.origin))

    def advance(self, lane: int, watermark: int) -> None:
        before = self.tracker.current
        now = self.tracker.update(0, lane, watermark)
        if now != before:
            consumers = range(self.harness._executors) if self.edge.kind == "shuffle" else [self.producer]
            for consumer in consumers:
                self._entry(consumer).advance(self.lane, now)


def of_program(program: type[MapReduce], records: Iterable[Any], **options: Any) -> dict[Hashable, Any]:
    """The result of a `MapReduce` over some records, by key. `options` are those of `run`."""
    from penstock.connectors.collected import collect
    from penstock.connectors.iterables import iterable

    flow = program.flow(iterable([]), collect())
    return dict(run(flow, {"input": records}, **options).outputs["output"])
