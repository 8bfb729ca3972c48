"""The parts of a simulated cluster: sources, replicated executors, a sink, and what they compute.

The computation is sensitive to order: every step hashes what came into the state, and says so in its output, so that
the sink can tell whether all that it got belongs to one sequential execution.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from xxhash import xxh3_64_intdigest

from penstock.exchange.channel import Verdict
from penstock.exchange.replica.assignment import Assignment
from penstock.exchange.replica.core import ReplicaSettings
from penstock.exchange.replica.instructions import Activate, Alarm, Install, Instruction, Prepare, Send, Work
from penstock.exchange.replica.lines import InputLine, OutputLine
from penstock.exchange.replica.messages import Checkpoint, Confirm, Data, Hello, Message, Resume
from penstock.exchange.replica.primary import Cut
from penstock.exchange.replica.replica import Replica

KEYS = 4
State = dict[str, Any]


class Violation(AssertionError):
    """A promise was broken."""


def fresh(version: int = 1) -> State:
    return {"hash": 0, "steps": 0, "version": version, "seen": {}}


def migrate(state: State, version: int) -> State:
    return {**state, "version": version}


def chain(before: int, channel: int, seq: int, content: Any, draws: tuple[Any, ...]) -> int:
    """The order-sensitive part of a step."""
    return xxh3_64_intdigest(msgspec.msgpack.encode([before, channel, seq, content, draws]))


def compute(state: State, work: Work, outputs: list[int], draw: Callable[[], int]) -> tuple[list[Any], tuple[int, ...]]:
    """One step: changes the state; the frames emitted, and what was drawn."""
    draws: list[int] = []
    recorded = list(work.draws or ())

    def random_value() -> int:
        value = recorded.pop(0) if recorded else draw()
        draws.append(value)
        return value

    if (state["hash"] + state["steps"]) % 3 == 0:
        random_value()
    state["steps"] += 1
    state["hash"] = chain(state["hash"], work.channel, work.seq, work.content, tuple(draws))
    key = state["hash"] % KEYS
    state["seen"][str(key)] = count = state["seen"].get(str(key), 0) + 1
    body = [state["steps"], state["hash"], key, count, work.channel, work.seq, work.content, draws, state["version"]]
    frame = msgspec.msgpack.encode(body)
    target = outputs[key % len(outputs)]
    # A later version says everything twice, so that its frames are numbered differently.
    return [(target, frame)] * state["version"], tuple(draws)


class Source:
    """A producer that is not replicated: it keeps its frames until they are safe."""

    def __init__(self, channel: int, frames: int) -> None:
        self.channel = channel
        self.line = OutputLine(channel, 400)
        self.left = frames
        self.sent = 0

    def step(self) -> list[Data]:
        if self.left and self.line.ready:
            self.left -= 1
            self.line.emit(0, b"%d/%d" % (self.channel, self.sent))
            self.sent += 1
        return self.line.release(None, (1, 1))[0]

    def on_message(self, message: Message) -> list[Data]:
        assert isinstance(message, Confirm | Resume)
        if message.epoch < self.line.epoch:
            return []
        self.line.epoch = message.epoch
        if isinstance(message, Confirm):
            self.line.confirm(message.next_seq, message.consumed, message.safe)
        else:
            self.line.resume(message.next_seq)  # a late one may ask for what is safe by now
        return self.line.release(None, (1, 1))[0]

    def silence(self) -> list[Data]:
        self.line.again()
        return self.line.release(None, (1, 1))[0]


class Sink:
    """The consumer at the end: what it has taken is safe."""

    def __init__(self, channel: int) -> None:
        self.channel = channel
        self.line = InputLine(channel)
        self.got: list[bytes] = []

    def on_message(self, message: Message) -> Message | None:
        assert isinstance(message, Data | Hello)
        if message.epoch < self.line.epoch:
            return None
        self.line.epoch = message.epoch
        if isinstance(message, Hello):
            return self.confirm(message.epoch)
        if message.seq < len(self.got) and self.got[message.seq] != message.payload:
            raise Violation(f"frame {message.seq} of channel {self.channel} came again with other content")
        verdict = self.line.receive(message.seq, message.payload)
        if verdict is Verdict.GAP:
            return Resume((1, 1), self.channel, self.line.next_seq, self.line.epoch)
        if verdict is Verdict.ACCEPT:
            self.got.append(message.payload)
            self.line.take(message.seq)
            self.line.forget_through(message.seq)
        return self.confirm(message.epoch)

    def confirm(self, epoch: Any) -> Confirm:
        last = self.line.next_seq - 1
        return Confirm((1, 1), self.channel, last + 1, last, last, epoch)


class Host:
    """The worker of one replica: its state, what is stored for it, and its machine."""

    def __init__(
        self,
        name: str,
        assignment: Assignment,
        inputs: list[int],
        outputs: list[int],
        settings: ReplicaSettings,
        version: int,
        rng: random.Random,
    ) -> None:
        self.name = name
        self.machine = Replica(name, assignment, inputs, outputs, settings)
        self.outputs = outputs
        self.version = version
        self.rng = rng
        self.state = fresh(version)
        self.before: dict[int, State] = {}
        """States at checkpoints, to take changes against."""
        self.preparing: deque[Checkpoint] = deque()
        self.ready_state: tuple[int, State] | None = None
        self.taking: tuple[Cut, State] | None = None
        """A checkpoint whose state is not there yet."""
        self.alive = True
        self.paused = False
        self.spoil = 0
        """Position at which this replica, while standby, computes something else."""
        self.spoiled_at = 0
        self.found = False
        self.peak = 0

    def obey(self, instructions: list[Instruction]) -> list[Send]:
        """Do what the machine says, apart from sending."""
        sends = []
        for instruction in instructions:
            if isinstance(instruction, Send):
                sends.append(instruction)
            elif isinstance(instruction, Prepare):
                self.preparing.append(instruction.checkpoint)
            elif isinstance(instruction, Install):
                assert self.ready_state is not None
                if self.ready_state[0] != instruction.position:
                    raise Violation("another checkpoint was installed than the one prepared")
                self.state = self.ready_state[1]
            elif isinstance(instruction, Activate):
                if self.state["steps"] != instruction.position:
                    raise Violation(f"{self.name} was activated at {instruction.position}, has {self.state['steps']}")
            elif isinstance(instruction, Alarm) and not self.expected(instruction.text):
                raise Violation(instruction.text)
        return sends

    def expected(self, text: str) -> bool:
        if "computed other" in text and self.spoil != 0:
            self.found = True
            return True
        return "diverged" in text

    def prepare(self) -> list[Send]:
        """The slow part of applying a checkpoint is done."""
        checkpoint = self.preparing.popleft()
        if checkpoint.base is None:
            state = {**checkpoint.state, "seen": dict(checkpoint.state["seen"])}
            if checkpoint.migrate:
                state = migrate(state, self.version)
        else:
            if self.state["steps"] != checkpoint.base and self.state["steps"] < checkpoint.position:
                return []
            state = {**checkpoint.state, "seen": {**self.state["seen"], **checkpoint.state["seen"]}}
        self.ready_state = (checkpoint.position, state)
        return self.obey(self.machine.prepared(checkpoint.position))

    def work(self) -> list[Send] | None:
        machine = self.machine
        if machine.is_primary and not machine.ready:
            return None
        work = machine.next_work()
        return None if work is None else self.execute(work)

    def event(self) -> list[Send] | None:
        work = self.machine.event("tick") if self.machine.ready else None
        return None if work is None else self.execute(work)

    def execute(self, work: Work) -> list[Send]:
        if self.state["steps"] != work.position - 1:
            raise Violation(f"{self.name} executes {work.position} on a state of {self.state['steps']}")
        emitted, draws = compute(self.state, work, self.outputs, lambda: self.rng.randrange(1000))
        if self.spoil and work.position >= self.spoil and not self.machine.is_primary:
            emitted = [(channel, frame + b"!") for channel, frame in emitted]
            self.spoil, self.spoiled_at = -1, work.position
        sends = self.obey(self.machine.executed(work, emitted, draws))
        self.peak = max(self.peak, len(self.machine.core.log))
        return sends

    def begin_checkpoint(self) -> None:
        """The state is taken now, and is there some time later."""
        machine = self.machine
        base = machine.checkpoint_base()
        old = self.before.get(base) if base is not None else None
        now = {**self.state, "seen": dict(self.state["seen"])}
        self.before = {k: v for k, v in self.before.items() if base is not None and k >= base}
        self.before[self.state["steps"]] = now
        cut = machine.begin_checkpoint(None if old is None else base)
        if cut is None:
            return
        if old is not None:
            now = {**now, "seen": {key: count for key, count in now["seen"].items() if old["seen"].get(key) != count}}
        self.taking = (cut, now)

    def end_checkpoint(self) -> list[Send]:
        """What `begin_checkpoint` took is there."""
        assert self.taking is not None
        (cut, state), self.taking = self.taking, None
        return self.obey(self.machine.checkpoint(cut, state))

    def checkpoint(self) -> list[Send]:
        """Both at once."""
        self.begin_checkpoint()
        return self.end_checkpoint() if self.taking is not None else []
