"""One replica of an executor in a worker: drives the machine of `penstock.exchange.replica`, and does what it says.

In each turn: messages go into the machine; positions of the order log are executed while there are any and time is
left; sources are read into the log; standbys get checkpoints; what was released leaves. A position is one unit: while
one is executed in several turns, messages wait.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from penstock.exchange.frame import Kind
from penstock.exchange.replica.core import ReplicaSettings
from penstock.exchange.replica.instructions import (
    Activate,
    Alarm,
    Install,
    Instruction,
    Party,
    Prepare,
    Retire,
    Send,
    Work,
)
from penstock.exchange.replica.messages import (
    Caught,
    Checkpoint,
    Complete,
    Confirm,
    Data,
    Diverged,
    Hello,
    Message,
    Refused,
)
from penstock.exchange.replica.replica import Replica
from penstock.flow.chain import Chain
from penstock.flow.draws import NotRepeatable
from penstock.placement.plan import Channel
from penstock.worker import snapshot
from penstock.worker.executor import LEAST_SLICE, MOST_SLICE, TURN_NS
from penstock.worker.messages import Alarmed, ExecutorId, Promoted, Push, ReplicaLoad, Reply, Reported, Retired
from penstock.worker.metrics import LatencyHistogram
from penstock.worker.model import Model
from penstock.worker.release import release_all
from penstock.worker.replicated.checkpoints import DurableParts, Encoder, StandbyCheckpoints
from penstock.worker.replicated.ends import Ends
from penstock.worker.replicated.frames import AnyReplicaMessage, Letter, kind_of
from penstock.worker.replicated.live import Live, LiveBuilder, is_sink, sink_lines
from penstock.worker.replicated.migration import migrating
from penstock.worker.replicated.patience import Patience
from penstock.worker.replicated.reading import Reading
from penstock.worker.replicated.shifts import Shifts

_UNCOMMITTED_BYTES = 64 << 20
"""What a sink may owe to the next durable checkpoint; with more, no further input is taken."""
_LARGE_STATE = 1 << 20
"""Bytes of a state that is read in a thread."""


@dataclass(slots=True, eq=False)
class _Step:
    """A position being executed."""

    work: Work
    pieces: Iterator[int]
    reading: Reading | None


class ReplicatedExecutor:
    """See the module. `parts`: the durable checkpoint that a first primary begins with."""

    def __init__(
        self,
        model: Model,
        executor_id: ExecutorId,
        plan: tuple[Channel, ...],
        load: ReplicaLoad,
        parts: list[snapshot.Part],
    ) -> None:
        self.id, self._model, self._plan, self._load = executor_id, model, plan, load
        self._builder = LiveBuilder(model, executor_id, plan)
        replication = model.load.replication
        self._shifts = Shifts(model, executor_id)
        self.machine = Replica(
            load.name,
            load.record,
            self._shifts.inputs,
            [*self._shifts.outputs, *sink_lines(self._builder)],
            ReplicaSettings(
                digest_every=replication.digest_every,
                credit_bytes=model.load.settings.credit_bytes,
                handover_lag=replication.handover_lag,
            ),
        )
        self.live: Live | None = None
        self.ends: Ends | None = None
        self.latency = LatencyHistogram()
        self.cpu_ns = self.busy_ns = 0
        self.ended_here = self.reported = self.gone = False
        self._parts = parts
        self._stored: bytes | None = None
        """A passive standby: the state in force."""
        self._prepared: tuple[int, bytes | Live] | None = None
        self._step: _Step | None = None
        self._inbox: deque[tuple[Message, str]] = deque()
        self._told: dict[int, tuple[int, int]] = {}
        self._slice = model.load.settings.batch_records
        self._requested = 0
        self._encoder = Encoder(model.around.wake)
        self._durable = DurableParts(model, executor_id, self._encoder)
        self._checkpoints = StandbyCheckpoints(self.machine, self._encoder, replication, self._carry_out)
        self._arrived: deque[tuple[int, Live | Exception]] = deque()
        """States that a thread has read."""
        self._patience = Patience()
        self._ordered: str | None = None
        """The standby that the leader wants to hand over to."""
        self._reassigned = False
        """The leader's record may have moved while a position was being executed."""
        self._promoted_at: float | None = None
        self.model_counters()
        if self.machine.is_primary:
            self._begin_with(parts)

    # ---- what it is -------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def role(self) -> str:
        """`primary`, `passive`, `active`, or empty once retired."""
        if self.machine.is_primary:
            return "primary"
        standby = self.machine.core.assignment.standbys.get(self.name)
        return standby.value if standby is not None and not self.machine.retired else ""

    @property
    def serving(self) -> Chain | None:
        """The operators that look-ups are answered from: those of a primary."""
        return self.live.chain if self.live is not None and self.machine.is_primary else None

    def model_counters(self) -> None:
        """Counts of the present live part are those that are shown."""
        self._model.counters[self.id] = self._builder.counters

    # ---- life -------------------------------------------------------------------------------------------------------

    def _begin_with(self, parts: list[snapshot.Part]) -> None:
        self.live = self._builder.build(self._aligned)
        if parts:
            self.live.restore(parts)

    def _close_live(self) -> None:
        if self.live is not None:
            live, self.live = self.live, None
            live.chain.close()

    def _open_ends(self) -> None:
        """This replica is primary and the gates are open."""
        assert self.live is not None
        self.ends = Ends(self._builder, self.live, self.latency, self._durable.prepared)

    def start(self) -> None:
        """Open the gates."""
        if self.machine.is_primary and self.ends is None:
            self._open_ends()
            assert self.ends is not None
            if self._parts:
                record = self._model.load.routings.get(self.id.stage)
                self.ends.recover(snapshot.owed(self._parts, self.id.index, self._builder.executors, record))
                self._parts = []

    def assigned(self) -> None:
        """The leader's record may have moved."""
        self._shifts.connect(self.machine)
        self._reassigned = True
        self._told_by_leader()

    def _told_by_leader(self) -> None:
        """What the leader has said, between two positions: one that is half executed must not see it."""
        if self._step is not None:
            return
        record, ordered = self._model.records.get(str(self.id)), self._ordered
        if self._reassigned and record is not None and not self.gone:
            self._carry_out(self.machine.on_assignment(record))
        if ordered is not None and not self.gone:
            self._carry_out(self.machine.on_handover_wanted(ordered))
        self._reassigned, self._ordered = False, None

    def hand_over(self, standby: str) -> None:
        """The leader wants a planned promotion."""
        self._ordered = standby
        self._told_by_leader()

    def close(self, *, well: bool) -> list[Exception]:
        """Release everything; the errors that came up on the way."""
        errors = self.ends.close(well=well) if self.ends is not None else []
        self.ends = None
        errors += release_all([self._close_live])
        self.gone = True
        return errors

    # ---- the turn ---------------------------------------------------------------------------------------------------

    def offer(self, message: AnyReplicaMessage, sender: str) -> None:
        """A message came."""
        self._inbox.append((message, sender))

    def work(self) -> bool:
        """Do what there is to do, for a bounded while; whether anything was done."""
        if self.gone:
            return False
        cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
        did = self._work(wall + TURN_NS)
        if did:
            self.cpu_ns += time.thread_time_ns() - cpu
            self.busy_ns += time.perf_counter_ns() - wall
        return did

    def _work(self, until: int) -> bool:
        did = False
        if self._step is not None:
            did = True
            if not self._go_on(until):
                return True
        self._told_by_leader()
        while self._inbox and not self.gone:
            message, sender = self._inbox.popleft()
            self._carry_out(self.machine.on_message(message, sender))
            did = True
        if self.gone:
            return True
        while time.perf_counter_ns() < until:
            step = self._next_position() or self._next_event()
            if step is None:
                break
            did = True
            self._step = step
            if not self._go_on(until):
                return True
            if self.gone:
                return True
        self._tend(did)
        return did

    def _tend(self, did: bool) -> None:
        """The end of a turn in which no position is half-executed."""
        machine, now = self.machine, self._model.around.clock.monotonic()
        self._encoder.deliver()
        self._take_arrived()
        if machine.is_primary and self.live is not None:
            self._checkpoints.tend(self.live, now)
            self._shifts.tend(machine, self.live, now)
        if not did and self.ends is not None:
            self.ends.flush()
        self._carry_out(machine.turn())
        if self.ends is not None:
            self._confirm_sinks()
            self.ends.keep_promises(machine.protected_through)
        silent, cut = self._patience.look(machine.debts(), now)
        if silent:
            self._model.reconnect({self._named(*debtor) for debtor in cut})
            self._carry_out(machine.silence())
        if self._promoted_at is not None and all(o.open or o.gone for o in machine.core.outputs.values()):
            pause, self._promoted_at = now - self._promoted_at, None
            self._model.around.say(Promoted(self._model.name, self.id, self.name, pause))
        self._see_the_end()

    def _see_the_end(self) -> None:
        live = self.live
        if self.reported or live is None or not live.ended or not self.machine.is_primary or self.ends is None:
            return
        if not live.shifting.holding and all(line.done for line in self.machine.core.outputs.values()):
            self.reported = True
            if self._model.load.checkpoint_url is None:
                for sink in self.ends.lines.values():
                    sink.end(well=True)
            self._model.around.ended(self._model, self.id)

    # ---- positions --------------------------------------------------------------------------------------------------

    def _next_position(self) -> _Step | None:
        machine = self.machine
        blocked = self.live.blocked() if self.live is not None else set()
        if machine.is_primary:
            if self.ends is None:
                return None
            assert self.live is not None
            blocked |= self._shifts.waiting(self.live)
            if not self._ready():
                blocked |= {number for number in machine.core.inputs if self._next_is_data(number)}
        work = machine.next_work(blocked)
        if work is None:
            return None
        if self.live is None:
            self._load_stored()
        assert self.live is not None
        self.live.shifting.position = work.position
        if work.channel < 0:
            return self._begun(work, self.live.event(work.content), None)
        return self._begun(work, self.live.frame(work.channel, work.content, self._slice), None)

    def _next_event(self) -> _Step | None:
        if self.ends is None or self.live is None or not self.machine.takes_events:
            return None
        shift = self._shifts.due(self.live)
        if shift is not None:
            return self._event(shift)
        if self._requested > self.live.taken and (self.live.ended or not self.live.inbounds):
            return self._event(["checkpoint", self._requested])
        if not self.live.sources:
            return None
        if not self.live.opened:
            return self._event(["lanes", self.ends.new_lanes()])
        self.ends.open_readers()
        if not self._ready():
            return None
        found = self.ends.next_event(min(self._slice, self._model.load.settings.batch_records))
        return None if found is None else self._event(*found)

    def _event(
        self, content: list[Any], records: list[Any] | None = None, reading: Reading | None = None
    ) -> _Step | None:
        work = self.machine.event(content)
        assert work is not None
        assert self.live is not None
        self.live.shifting.position = work.position
        return self._begun(work, self.live.event(content, records), reading)

    def _begun(self, work: Work, pieces: Iterator[int], reading: Reading | None) -> _Step:
        assert self.live is not None
        self.live.draws.begin(work.draws)
        return _Step(work, pieces, reading)

    def _go_on(self, until: int) -> bool:
        """Execute the position; whether it is done."""
        step, live = self._step, self.live
        assert step is not None
        assert live is not None
        live.draws.resume()
        start = time.perf_counter_ns()
        try:
            for records in step.pieces:
                now = time.perf_counter_ns()
                self._learn(records, now - start)
                start = now
                if now > until:
                    live.draws.pause()
                    return False
            drawn = live.draws.end()
        except NotRepeatable:
            live.draws.pause()
            self._step = None
            if self.machine.is_primary:
                raise
            self._carry_out(self.machine.not_repeatable())
            return True
        except BaseException:
            live.draws.pause()
            raise
        self._step = None
        emitted = live.emitted()
        if self.ends is not None and step.work.draws is not None:
            self.ends.replayed(self.machine, emitted)
        self._carry_out(self.machine.executed(step.work, emitted, drawn))
        if step.reading is not None and self.ends is not None:
            self.ends.logged(step.reading, step.work.position)
        return True

    def _learn(self, records: int, took_ns: int) -> None:
        if took_ns > TURN_NS:
            self._slice = max(LEAST_SLICE, records * TURN_NS // took_ns)
        elif self._slice < MOST_SLICE and records >= self._slice and took_ns < TURN_NS // 2:
            self._slice *= 2

    def _ready(self) -> bool:
        outputs = self.machine.core.outputs
        return (
            self.machine.ready
            and all(line.bytes < _UNCOMMITTED_BYTES for number, line in outputs.items() if is_sink(number))
            and (self.live is None or self.live.shifting.ready)
        )

    def _next_is_data(self, number: int) -> bool:
        line = self.machine.core.inputs[number]
        return line.taken + 1 < line.next_seq and kind_of(line[line.taken + 1]) == Kind.DATA

    # ---- what the machine says --------------------------------------------------------------------------------------

    def _carry_out(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Send():
                    self._send(instruction)
                case Prepare():
                    self._prepare(instruction.checkpoint)
                case Install():
                    self._install(instruction.position)
                case Activate():
                    self._activate()
                case Retire():
                    self._retire()
                case Alarm():
                    steps = ", ".join(self._builder.graph.topology.stages[self.id.stage].steps)
                    text = f"{instruction.text} (executor {self.id}, steps {steps})"
                    self._model.around.say(Alarmed(self._model.name, self.id, text))

    def _send(self, instruction: Send) -> None:
        party, target, message = instruction
        if party is Party.LEADER:
            assert isinstance(message, Complete | Caught | Diverged | Refused)
            self._model.around.say(Reported(self._model.name, self.id, self.name, message))
            return
        if party is Party.CONSUMER and isinstance(target, int) and is_sink(target):
            self._to_sink(target, message)
            return
        if party is Party.REPLICA:
            there, endpoint = self.id, self._model.replicas.get(str(target))
        else:
            assert isinstance(target, int)
            there = self._other_end(party, target)
            endpoint = self._model.endpoints.get(str(there))
        if endpoint is not None:
            letter = Letter(there.stage, there.index, self.name, message)  # type: ignore[arg-type]
            self._model.post(endpoint, letter)

    def _named(self, party: Party, target: int | str) -> str:
        """The executor or replica that owes an answer; empty for a sink here."""
        if party is Party.REPLICA or isinstance(target, str):
            return str(target)
        return "" if is_sink(target) else str(self._other_end(party, target))

    def _other_end(self, party: Party, number: int) -> ExecutorId:
        channel = self._shifts.channel(number)
        if party is Party.PRODUCER:
            return ExecutorId(channel.producer_stage, channel.producer_index)
        return ExecutorId(channel.consumer_stage, channel.consumer_index)

    def _to_sink(self, number: int, message: Message) -> None:
        if self.ends is None:
            return
        line = self.ends.lines[number]
        if isinstance(message, Data):
            line.take(message.seq, message.payload)
        elif isinstance(message, Hello):
            self._told.pop(number, None)
            self._inbox.append((self._marks(number), ""))

    def _marks(self, number: int) -> Confirm:
        assert self.ends is not None
        line, since = self.ends.lines[number], self.machine.core.since
        return Confirm(since, number, line.next_seq, line.next_seq - 1, line.safe, since)

    def _confirm_sinks(self) -> None:
        assert self.ends is not None
        for number, line in self.ends.lines.items():
            if self._told.get(number) != (line.next_seq, line.safe) and self.machine.core.outputs[number].open:
                self._told[number] = (line.next_seq, line.safe)
                self._carry_out(self.machine.on_message(self._marks(number)))

    def _prepare(self, checkpoint: Checkpoint) -> None:
        """The state is read beside what is in force; a passive standby keeps it as it came."""
        data: bytes = checkpoint.state
        standby = self.machine.core.assignment.standbys.get(self.name)
        if standby is not None and standby.value == "passive" and self.live is None:
            self._prepared = (checkpoint.position, data)
            self._carry_out(self.machine.prepared(checkpoint.position))
        elif len(data) < _LARGE_STATE:
            self._arrived.append((checkpoint.position, self._read_state(checkpoint)))
            self._take_arrived()
        else:
            threading.Thread(target=self._read_aside, args=(checkpoint,), name="state", daemon=True).start()

    def _read_state(self, checkpoint: Checkpoint) -> Live:
        live = LiveBuilder(self._model, self.id, self._plan).build(self._aligned)
        live.load(checkpoint.state, migrating(self._model, self._load.migrate_from) if checkpoint.migrate else None)
        return live

    def _read_aside(self, checkpoint: Checkpoint) -> None:
        """In a thread of its own: a large state takes long."""
        try:
            self._arrived.append((checkpoint.position, self._read_state(checkpoint)))
        except Exception as error:
            self._arrived.append((checkpoint.position, error))
        self._model.around.wake()

    def _take_arrived(self) -> None:
        while self._arrived:
            position, state = self._arrived.popleft()
            if isinstance(state, Exception):
                raise state
            if not self.gone:
                self._prepared = (position, state)
                self._carry_out(self.machine.prepared(position))

    def _install(self, position: int) -> None:
        assert self._prepared is not None
        _, state = self._prepared
        self._prepared = None
        if isinstance(state, bytes):
            self._stored = state
            return
        self._close_live()
        self.live, self._stored = state, None
        self._builder = state.builder
        self.model_counters()

    def _load_stored(self) -> None:
        """A passive standby begins to execute."""
        self._close_live()
        self._builder = LiveBuilder(self._model, self.id, self._plan)
        self.model_counters()
        live = self._builder.build(self._aligned)
        if self._stored is not None:
            live.load(self._stored)
            self._stored = None
        self.live = live

    def _activate(self) -> None:
        """This replica is primary now."""
        self._promoted_at = self._model.around.clock.monotonic()
        if self.live is None:
            self._load_stored()
        self._open_ends()
        assert self.ends is not None
        checkpoint = self._model.checkpoint
        part = None
        if checkpoint is not None and any(line.transactional for line in self.ends.lines.values()):
            checkpoint, part = self._model.around.part(self._model, self.id, checkpoint)
        self.ends.take_over(self.machine, checkpoint, part)
        self._told.clear()

    def _retire(self) -> None:
        for error in self.close(well=False):
            self._model.around.say(Alarmed(self._model.name, self.id, f"while it stopped: {error}"))
        self._inbox.clear()
        self._step = None
        self._model.around.say(Retired(self._model.name, self.id, self.name))

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def request(self, checkpoint: int) -> None:
        """A durable checkpoint begins: sources (and executors whose input has ended) start it."""
        self._requested = max(self._requested, checkpoint)
        self._durable.begun()

    def _aligned(self, checkpoint: int) -> None:
        live = self.live
        if live is None or not self.machine.is_primary or live.draws.repeating or self.ends is None:
            return
        if self._model.load.checkpoint_url is not None:
            self._durable.aligned(live, checkpoint, {line.step for line in self.ends.lines.values()})

    def committed(self, checkpoint: int) -> None:
        """A durable checkpoint is complete."""
        part = self._durable.complete(checkpoint)
        if part is not None and self.ends is not None:
            self.ends.commit(checkpoint, part)

    # ---- for the worker ---------------------------------------------------------------------------------------------

    def push(self, message: Push) -> Reply | None:
        """See `Ends.push`."""
        assert self.ends is not None
        return self.ends.push(message, self.machine.core.executed, self._model.around.say)

    def takes(self, source: str) -> bool:
        """Whether records can be pushed to `source` here now."""
        return self.ends is not None and self.ends.reading(source) is not None

    def woken(self) -> None:
        """Some connector or operator said that there is something to do."""
        if self.ends is not None:
            self.ends.woken()

    def next_read(self) -> float:
        """When (monotonic) a source wants to be read again."""
        if self.ends is None or not self._ready():
            return float("inf")
        return self.ends.next_read()

    def flush_sinks(self) -> None:
        """Push out what the sinks have buffered."""
        if self.ends is not None:
            self.ends.flush()

    def drain(self, *, finish: bool) -> None:
        """Sources stop reading."""
        if self.ends is not None:
            self.ends.drain()
