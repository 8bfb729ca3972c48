"""One replica of an executor as a pure state machine, in whatever role the leader gives it.

Events go in as method calls; each returns instructions. The worker executes at most one log position at a time, between
`next_work` (or `event`) and `executed`. See docs/replica.md.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from typing import Any

from penstock.exchange.replica.assignment import Assignment
from penstock.exchange.replica.core import Core, ReplicaSettings
from penstock.exchange.replica.instructions import Activate, Debtor, Instruction, Retire, Work
from penstock.exchange.replica.messages import (
    Ack,
    Applied,
    AskInput,
    AskLog,
    AskSnapshot,
    Checkpoint,
    Confirm,
    Data,
    Handover,
    Hello,
    Input,
    Log,
    Message,
    Refused,
    Resume,
    Warm,
)
from penstock.exchange.replica.primary import Cut, Primary
from penstock.exchange.replica.standby import Standby


class Replica:
    """See the module. `inputs` and `outputs` are channel numbers."""

    def __init__(
        self,
        name: str,
        assignment: Assignment,
        inputs: Iterable[int],
        outputs: Iterable[int],
        settings: ReplicaSettings | None = None,
    ) -> None:
        self.core = Core(name, assignment, inputs, outputs, settings or ReplicaSettings())
        self.role: Primary | Standby | None = None
        if assignment.primary == name:
            self.role = Primary(self.core)
            self.role.assign(assignment)
        elif name in assignment.standbys:
            self.role = Standby(self.core, assignment.standbys[name], name in assignment.foreign)

    def begin_at(self, marks: Mapping[int, int], next_out: Mapping[int, int]) -> None:
        """A primary, before anything else: its channels are in use already. `marks` are the last frames processed, and
        safe, per input; `next_out` the numbers of the next frames per output, everything before being safe."""
        for number, taken in marks.items():
            self.core.inputs[number].restart(taken)
        for number, following in next_out.items():
            self.core.outputs[number].begin_at(following)
        if isinstance(self.role, Primary):
            self.role.safe_marks = self.core.marks()

    # ---- channels that come and go ----------------------------------------------------------------------------------

    def add_input(self, number: int) -> None:
        """There is another input channel (or there has been for long). Until a frame of it is in the log it changes
        nothing, so the replicas of an executor may hear of it at different times."""
        self.core.input(number)

    def add_output(self, number: int, *, counted: bool = True) -> None:
        """There is another output channel. `counted`: `ready` asks for its credit."""
        line = self.core.outputs.get(number)
        if line is None:
            line = self.core.output(number)
            line.open = True
        line.counted = counted

    def drop_output(self, number: int) -> None:
        """The consumer of a channel is gone for ever, whatever it has not taken. A replay still numbers what it
        emits there."""
        self.core.output(number).drop()

    # ---- what it is -------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.core.name

    @property
    def is_primary(self) -> bool:
        return isinstance(self.role, Primary)

    @property
    def retired(self) -> bool:
        return self.role is None

    @property
    def ready(self) -> bool:
        """Whether another data frame should be processed: there is credit for its output, and the standby is not too
        far behind with the inputs."""
        core = self.core
        kept = sum(line.processed_bytes for line in core.inputs.values())
        return kept <= core.settings.backlog_bytes and all(line.ready for line in core.outputs.values())

    @property
    def takes_events(self) -> bool:
        """Whether `event` gives a position now: the log is executed, and no hand-over is under way."""
        role, core = self.role, self.core
        return isinstance(role, Primary) and not role.stopped and core.executed == core.log.end and not core.busy

    @property
    def protected_through(self) -> int:
        """The last log position that a crash of this primary does not undo (without a standby: what is executed)."""
        return self.role.protected_through() if isinstance(self.role, Primary) else 0

    def debts(self) -> dict[Debtor, Hashable]:
        """Who owes an answer, and how far they are. When one of them does not move for suspiciously long, `silence` is
        of use, also if others answer all the time: what it owes may rest on a message that was lost."""
        return {} if self.role is None else self.role.debts()

    # ---- the leader's decisions -------------------------------------------------------------------------------------

    def on_assignment(self, assignment: Assignment) -> list[Instruction]:
        """The leader moved the record. Older ones are refused."""
        core = self.core
        if assignment.epoch <= core.assignment.epoch:
            core.refuse("older assignment")
            return self._taken()
        if assignment.since < core.since:
            core.refuse("older assignment")
            return self._taken()
        core.assignment = assignment
        if assignment.primary == core.name:
            if isinstance(self.role, Standby):
                self._promote(self.role, assignment)
            elif isinstance(self.role, Primary):
                self.role.assign(assignment)
        elif core.name in assignment.standbys and isinstance(self.role, Standby):
            self.role.assign(assignment)
            if assignment.since > core.since:
                self.role.follow(assignment.since)
        else:
            self._retire()
        return self._taken()

    def on_handover_wanted(self, standby: str) -> list[Instruction]:
        """The leader wants a planned promotion (a move, an upgrade) of a standby."""
        if isinstance(self.role, Primary):
            self.role.prepare_handover(standby)
        return self._taken()

    def _promote(self, standby: Standby, assignment: Assignment) -> None:
        core = self.core
        reason = standby.fit()
        if reason:
            core.alarm(f"{core.name} cannot take over: {reason}")
            core.report(Refused(assignment.epoch, core.name, reason))
            self._retire()
            return
        core.since = assignment.since
        core.log.cut_after(standby.acked)
        core.digests.clear()
        self.role = Primary(core)
        core.told.append(Activate(core.executed))
        self.role.take_over()
        self.role.assign(assignment)

    def _retire(self) -> None:
        if self.role is not None:
            self.role = None
            self.core.told.append(Retire())

    # ---- messages ---------------------------------------------------------------------------------------------------

    def on_message(self, message: Message, sender: str = "") -> list[Instruction]:
        """A message came. `sender` names the replica for those between replicas."""
        if isinstance(message, Data | Hello | Confirm | Resume):
            self._neighbour(message)
        elif isinstance(message, Ack | Applied | AskLog | AskInput | AskSnapshot):
            self._from_standby(message, sender)
        elif isinstance(message, Log | Input | Checkpoint | Warm | Handover):
            self._from_primary(message)
        return self._taken()

    def _neighbour(self, message: Data | Hello | Confirm | Resume) -> None:
        role, core = self.role, self.core
        lines = core.inputs if isinstance(message, Data | Hello) else core.outputs
        line = lines.get(message.channel)
        if line is None:
            core.refuse("unknown channel")  # it is said again when this replica has heard of the channel, too
            return
        if message.epoch < line.epoch:
            core.refuse("older epoch")
            return
        line.epoch = message.epoch
        if isinstance(message, Confirm | Resume) and message.producer > core.since and isinstance(role, Primary):
            self._retire()  # a neighbour has heard of a later primary
            return
        if isinstance(role, Standby) and isinstance(message, Data):
            role.on_input(message)
        if not isinstance(role, Primary):
            return
        if isinstance(message, Data):
            role.on_data(message)
        elif isinstance(message, Hello):
            role.on_hello(message)
        elif isinstance(message, Confirm):
            role.on_confirm(message)
        else:
            role.on_resume(message)

    def _from_standby(self, message: Ack | Applied | AskLog | AskInput | AskSnapshot, sender: str) -> None:
        role, core = self.role, self.core
        if message.epoch > core.since and isinstance(role, Primary):
            self._retire()  # somebody follows a later primary
            return
        follower = role.followers.get(sender) if isinstance(role, Primary) else None
        if not isinstance(role, Primary) or message.epoch < core.since or follower is None:
            core.refuse("older epoch")
            return
        if message.session != follower.session:
            core.refuse("earlier session")
            return
        if isinstance(message, Ack):
            role.on_ack(follower, message)
        elif isinstance(message, Applied):
            role.on_applied(follower, message)
        elif isinstance(message, AskLog):
            role.on_ask_log(follower, message)
        elif isinstance(message, AskInput):
            role.on_ask_input(follower, message)
        else:
            role.on_ask_snapshot(follower, message)

    def _from_primary(self, message: Log | Input | Checkpoint | Warm | Handover) -> None:
        role, core = self.role, self.core
        if message.epoch < core.since or role is None:
            core.refuse("older epoch")
            return
        if message.epoch > core.since:
            # A later primary has begun before the leader's word came: what is held belongs to the former one.
            if isinstance(role, Primary):
                self._retire()
                return
            role.follow(message.epoch)
        if isinstance(role, Primary):
            core.refuse("not a standby")
        elif isinstance(message, Log):
            role.on_log(message)
        elif isinstance(message, Input):
            role.on_input(message)
        elif isinstance(message, Checkpoint):
            role.on_checkpoint(message)
        elif isinstance(message, Warm):
            role.executing = True
        else:
            role.on_handover(message)

    # ---- work -------------------------------------------------------------------------------------------------------

    def next_work(self, blocked: Container[int] = ()) -> Work | None:
        """The next log position to execute, if any. `blocked` are channels that wait behind a barrier."""
        if isinstance(self.role, Primary):
            work = self.role.next_work(blocked)
        else:
            work = self.role.next_work() if self.role is not None else None
        self.core.busy = work is not None
        return work

    def event(self, content: Any) -> Work | None:
        """A position for something that is no frame (a timer, a flush, records read from a source)."""
        work = self.role.event(content) if isinstance(self.role, Primary) else None
        self.core.busy = work is not None
        return work

    def executed(
        self, work: Work, emitted: Sequence[tuple[int, bytes]], draws: tuple[Any, ...] = ()
    ) -> list[Instruction]:
        """The position was executed and emitted (channel, frame). Raises `ExchangeError` when another one was due."""
        if self.role is not None:
            self.core.apply(work, emitted, draws)
            self.role.after_step()
        return self._taken()

    def not_repeatable(self) -> list[Instruction]:
        """A step of an active standby drew other values than the log has: its state is of no use."""
        self.core.busy = False
        if isinstance(self.role, Standby):
            self.role.diverged()
        return self._taken()

    def prepared(self, position: int) -> list[Instruction]:
        """What `Prepare` asked for is done."""
        if isinstance(self.role, Standby):
            self.role.prepared(position)
        return self._taken()

    def turn(self) -> list[Instruction]:
        """The end of a turn of the worker's loop: stream the log, acknowledge, confirm what has moved."""
        if isinstance(self.role, Primary):
            self.role.stream()
        elif self.role is not None:
            self.role.acknowledge()
        return self._taken()

    def silence(self) -> list[Instruction]:
        """Nothing has come for suspiciously long: say again whatever was not answered."""
        if self.role is not None:
            self.role.silence()
        return self._taken()

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint taken now would be of use to a standby."""
        return isinstance(self.role, Primary) and self.role.due()

    def snapshot_wanted(self) -> bool:
        """Whether a standby waits for a full snapshot: take it soon."""
        return isinstance(self.role, Primary) and self.role.wants_snapshot() and self.role.due()

    def checkpoint_base(self) -> int | None:
        """The position since which changes are enough; `None`: the whole state is needed."""
        return self.role.base() if isinstance(self.role, Primary) else None

    def begin_checkpoint(self, base: int | None = None) -> Cut | None:
        """The state after the last executed position is being taken: changes since `base`, which `checkpoint_base`
        gave, or the whole. Give it to `checkpoint` when it is there."""
        return self.role.begin_checkpoint(base) if isinstance(self.role, Primary) else None

    def give_up_checkpoint(self, cut: Cut) -> None:
        """The state could not be taken."""
        if isinstance(self.role, Primary) and self.role.cut is cut:
            self.role.cut = None

    def checkpoint(self, cut: Cut, state: Any) -> list[Instruction]:
        """The state at `cut`, whole or as changes since its base."""
        if isinstance(self.role, Primary):
            self.role.checkpoint(cut, state)
        return self._taken()

    def _taken(self) -> list[Instruction]:
        told, self.core.told = self.core.told, []
        return told
