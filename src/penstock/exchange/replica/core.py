"""What a replica has in every role: channels, the order log, and how a position of it is executed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from xxhash import xxh3_64_intdigest

from penstock.errors import ExchangeError
from penstock.exchange.channel import DEFAULT_CREDIT
from penstock.exchange.frame import Epoch
from penstock.exchange.replica.assignment import Assignment
from penstock.exchange.replica.instructions import Alarm, Instruction, Party, Send, Work
from penstock.exchange.replica.lines import InputLine, OutputLine
from penstock.exchange.replica.messages import Message, Step
from penstock.exchange.replica.order_log import EVENT, OrderLog


class Feed(Enum):
    """How the standby gets the inputs."""

    FORWARD = "forward"
    """The primary forwards them as they came."""
    DIRECT = "direct"
    """Producers send every frame to all replicas."""


@dataclass(frozen=True)
class ReplicaSettings:
    """The same for all replicas of an executor."""

    feed: Feed = Feed.FORWARD
    digest_every: int = 64
    """Log positions between two comparisons of an active standby's output."""
    credit_bytes: int = DEFAULT_CREDIT
    """Output not consumed yet, per channel: with more, no further data frame should be processed."""
    backlog_bytes: int = 64 << 20
    """Inputs kept for a standby that is still catching up; with more, its catch-up begins anew."""
    handover_lag: int = 8
    """The primary stops for a planned promotion when the other replica is at most so many positions behind."""


class Core:
    """See the module. `told` gathers instructions until the worker takes them."""

    def __init__(
        self,
        name: str,
        assignment: Assignment,
        inputs: Iterable[int],
        outputs: Iterable[int],
        settings: ReplicaSettings,
    ) -> None:
        self.name = name
        self.assignment = assignment
        self.since: Epoch = assignment.since
        self.settings = settings
        self.inputs = {number: InputLine(number) for number in inputs}
        self.outputs = {number: OutputLine(number, settings.credit_bytes) for number in outputs}
        self.log = OrderLog()
        self.executed = 0
        """The log position whose effect the state has."""
        self.digest = 0
        self.digests: list[tuple[int, int]] = []
        """Own rolling digests at every `digest_every`-th position, not yet compared or told."""
        self.refused: Counter[str] = Counter()
        """Messages refused, by reason."""
        self.busy = False
        """A position was given out and not reported yet."""
        self.told: list[Instruction] = []

    # ---- channels ---------------------------------------------------------------------------------------------------

    def input(self, number: int) -> InputLine:
        """An input line. One that is not known yet is empty: the log, or a checkpoint, names it first."""
        line = self.inputs.get(number)
        if line is None:
            line = self.inputs[number] = InputLine(number)
        return line

    def output(self, number: int) -> OutputLine:
        """An output line, as `input`."""
        line = self.outputs.get(number)
        if line is None:
            line = self.outputs[number] = OutputLine(number, self.settings.credit_bytes)
        return line

    # ---- instructions -----------------------------------------------------------------------------------------------

    def send(self, party: Party, target: int | str, message: Message) -> None:
        self.told.append(Send(party, target, message))

    def report(self, message: Message) -> None:
        """To the leader."""
        self.told.append(Send(Party.LEADER, "", message))

    def alarm(self, text: str) -> None:
        self.told.append(Alarm(text))

    def refuse(self, reason: str) -> None:
        self.refused[reason] += 1

    # ---- execution --------------------------------------------------------------------------------------------------

    def logged(self) -> Work:
        """The next position, as the log says."""
        position = self.executed + 1
        step = self.log[position]
        content = step.event if step.channel == EVENT else self.inputs[step.channel][step.seq]
        return Work(position, step.channel, step.seq, content, step.draws)

    def apply(self, work: Work, emitted: Sequence[tuple[int, bytes]], draws: tuple[Any, ...]) -> None:
        """A position was executed: log it if it is new, number and keep its output."""
        if work.position != self.executed + 1:
            raise ExchangeError(
                f"log position {work.position} was executed, but {self.executed + 1} was due",
                remedy="execute one position at a time, and report each",
            )
        if work.position == self.log.end + 1:
            event = work.content if work.channel == EVENT else None
            self.log.append(Step(work.channel, work.seq, event, draws))
        self.executed = work.position
        self.busy = False
        if work.channel != EVENT:
            self.input(work.channel).take(work.seq)
        for channel, payload in emitted:
            seq = self.output(channel).emit(work.position, payload)
            seed = xxh3_64_intdigest(f"{self.digest} {work.position} {channel} {seq}".encode())
            self.digest = xxh3_64_intdigest(payload, seed)
        if work.position % self.settings.digest_every == 0:
            self.digests.append((work.position, self.digest))

    def marks(self) -> dict[int, int]:
        """Input channel -> the last frame processed."""
        return {number: line.taken for number, line in self.inputs.items()}

    def next_out(self) -> dict[int, int]:
        """Output channel -> the number of its next frame."""
        return {number: line.next_seq for number, line in self.outputs.items()}
