"""The replica that follows a primary: it holds checkpoint, inputs and order log, and if active executes the log."""

from __future__ import annotations

from collections.abc import Hashable

from penstock.exchange.channel import Verdict
from penstock.exchange.frame import Epoch
from penstock.exchange.replica.assignment import Assignment, Mode
from penstock.exchange.replica.core import Core, Feed
from penstock.exchange.replica.instructions import Debtor, Install, Party, Prepare, Work
from penstock.exchange.replica.messages import (
    Ack,
    Applied,
    AskInput,
    AskLog,
    AskSnapshot,
    Caught,
    Checkpoint,
    Data,
    Diverged,
    Handover,
    Input,
    Log,
    Resume,
)
from penstock.exchange.replica.order_log import EVENT, OrderLog


class Standby:
    """See the module."""

    def __init__(self, core: Core, mode: Mode, foreign: bool) -> None:
        self.core = core
        self.mode = mode
        self.foreign = foreign
        self.executing = mode is Mode.ACTIVE
        self.session = 0
        self.receiving = False
        """The session's snapshot has come, so that inputs and log can be placed."""
        self.synced = False
        """It is in force."""
        self.acked = 0
        self.pending: Checkpoint | None = None
        self.theirs: dict[int, int] = {}
        """The primary's digests, not yet compared."""
        self.handover: Handover | None = None
        self.caught = False
        self.astray: int | None = None
        """Where it was found to have diverged, until a new snapshot comes."""
        self._asked_log = 0
        self._told: Ack | None = None

    # ---- following --------------------------------------------------------------------------------------------------

    def begin_anew(self) -> None:
        """Nothing that is held is of use: wait for a full snapshot."""
        core = self.core
        self.receiving = self.synced = self.caught = False
        self.pending = self.handover = None
        self.theirs.clear()
        core.digests.clear()
        for line in core.inputs.values():
            line.clear()

    def follow(self, epoch: Epoch) -> None:
        """Another primary was appointed."""
        self.core.since = epoch
        self.session = 0
        self.astray = None
        self.executing = self.mode is Mode.ACTIVE
        self.begin_anew()

    def assign(self, assignment: Assignment) -> None:
        """The set of standbys changed; this one stays."""
        self.mode = assignment.standbys[self.core.name]
        self.foreign = self.core.name in assignment.foreign

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def on_checkpoint(self, message: Checkpoint) -> None:
        core = self.core
        if message.session < self.session or (message.session == self.session and not self.receiving):
            core.refuse("checkpoint of an earlier session")
            return
        if message.session > self.session:
            self.session = message.session
            self.begin_anew()
            self.receiving = True
            self.astray = None
            self._asked_log = 0
            core.log = OrderLog(message.position)
            self.acked = message.position
            for number, taken in message.marks.items():
                core.input(number).restart(taken)
        elif self.synced and message.position <= core.executed:
            core.send(Party.REPLICA, core.assignment.primary, Applied(core.since, self.session, message.position))
            return
        elif self.pending is not None and message.position <= self.pending.position:
            return
        elif self.synced and message.base not in (None, core.executed):
            core.refuse("changes since another checkpoint")
            return
        self.pending = message
        core.told.append(Prepare(message))

    def prepared(self, position: int) -> None:
        """The worker is ready to put the pending checkpoint in force."""
        core, pending = self.core, self.pending
        if pending is None or pending.position != position:
            return
        self.pending = None
        if self.synced and position <= core.executed:
            self._applied(position)  # it was made to execute, and has passed it already
            return
        core.told.append(Install(position))
        core.executed, core.digest = position, pending.digest
        core.log.restart_after(position)
        self.acked = max(self.acked, position)
        for number, taken in pending.marks.items():
            core.input(number).restart(taken)
        self._load_outputs(pending)
        self.synced = True
        self._applied(position)
        self.move()

    def _load_outputs(self, message: Checkpoint | Handover) -> None:
        """Of channels that the primary does not know yet, nothing has happened."""
        core = self.core
        for number in core.outputs.keys() | message.next_out.keys():
            core.output(number).load(message.next_out.get(number, 0), message.outputs.get(number, ()))

    def _applied(self, position: int) -> None:
        core = self.core
        core.send(Party.REPLICA, core.assignment.primary, Applied(core.since, self.session, position))

    # ---- inputs and log ---------------------------------------------------------------------------------------------

    def on_input(self, message: Input | Data) -> None:
        """A frame, from the primary or straight from the producer."""
        core = self.core
        if not self.receiving:
            core.refuse("frame before the snapshot")
            return
        line = core.input(message.channel)
        verdict = line.receive(message.seq, message.payload)
        if verdict is Verdict.ACCEPT:
            self.move()
        elif verdict is Verdict.GAP:
            asked = line.ask()
            if asked is not None:
                self._ask_input(message.channel, asked)
        else:
            core.refuse("repeat")

    def _ask_input(self, number: int, first: int) -> None:
        core = self.core
        if core.settings.feed is Feed.FORWARD:
            ask = AskInput(core.since, self.session, number, first)
            core.send(Party.REPLICA, core.assignment.primary, ask)
        else:
            core.send(Party.PRODUCER, number, Resume(core.since, number, first, core.inputs[number].epoch))

    def on_log(self, message: Log) -> None:
        core = self.core
        if not self.receiving:
            core.refuse("log before the snapshot")
            return
        if not core.log.receive(message.first, message.entries):
            if self._asked_log != core.log.end + 1:
                self._asked_log = core.log.end + 1
                core.send(Party.REPLICA, core.assignment.primary, AskLog(core.since, self.session, self._asked_log))
            return
        if self.executing and not self.foreign:
            own = dict(core.digests)
            self.theirs.update(d for d in message.digests if d[0] > core.executed or d[0] in own)
        for number, safe in message.safe.items():
            line = core.output(number)
            line.confirm(line.next_seq, safe, safe)
        self.move()
        self.compare()

    def move(self) -> None:
        """Acknowledge the log as far as the inputs that it names are held."""
        log = self.core.log
        while self.acked < log.end:
            step = log[self.acked + 1]
            if step.channel != EVENT and step.seq >= self.core.input(step.channel).next_seq:
                break
            self.acked += 1

    def acknowledge(self, again: bool = False) -> None:
        """Tell the primary how far this replica is, if that has moved."""
        core = self.core
        if not self.synced:
            return
        held = {number: line.next_seq for number, line in core.inputs.items()}
        ack = Ack(core.since, self.session, self.acked, core.executed, self.executing, held)
        if again or ack != self._told:
            self._told = ack
            core.send(Party.REPLICA, core.assignment.primary, ack)

    def debts(self) -> dict[Debtor, Hashable]:
        """Whether the primary owes a snapshot or inputs, or the leader a word, and how far that is."""
        core = self.core
        if self.synced and self.acked >= core.log.end and not self.caught:
            return {}
        held = tuple(line.next_seq for line in core.inputs.values())
        return {(Party.REPLICA, core.assignment.primary): (self.session, self.synced, self.acked, held)}

    # ---- executing --------------------------------------------------------------------------------------------------

    def next_work(self) -> Work | None:
        """The next position of the log, if this standby executes."""
        core = self.core
        if self.executing and self.synced and core.executed < self.acked:
            return core.logged()
        return None

    def after_step(self) -> None:
        """A position was executed; its output is kept and does not leave."""
        core = self.core
        core.log.forget_through(core.executed)
        for line in core.inputs.values():
            line.forget_through(line.taken)
        self.compare()
        self.reach_handover()

    def compare(self) -> None:
        """Compare the digests that both sides have."""
        core = self.core
        if self.caught:
            return
        for position, own in core.digests:
            if self.theirs.get(position, own) != own:
                self._diverged(position)
                return
        core.digests = [digest for digest in core.digests if digest[0] not in self.theirs][-64:]
        self.theirs = {position: digest for position, digest in self.theirs.items() if position > core.executed}

    def _diverged(self, position: int) -> None:
        core = self.core
        core.alarm(f"{core.name} computed other output than its primary before log position {position}")
        self.begin_anew()
        self.astray = position
        self._ask_snapshot()

    def _ask_snapshot(self) -> None:
        core = self.core
        if self.astray is not None:
            core.report(Diverged(core.assignment.epoch, core.name, self.astray))
        core.send(Party.REPLICA, core.assignment.primary, AskSnapshot(core.since, self.session, self.astray))

    def diverged(self) -> None:
        """The worker saw that the step cannot be repeated (it draws other values than the log has)."""
        self._diverged(self.core.executed + 1)

    # ---- planned promotion ------------------------------------------------------------------------------------------

    def on_handover(self, message: Handover) -> None:
        if self.synced and message.session == self.session:
            self.handover = message
            self.reach_handover()

    def reach_handover(self) -> None:
        """At the primary's last position: take over what it has sent and owes."""
        core, message = self.core, self.handover
        if message is None or core.executed != message.position:
            return
        if not self.caught:
            if not self.foreign and core.digest != message.digest:
                self._diverged(message.position)
                return
            self.caught = True  # from here on the leader may rely on it: nothing is begun anew
            self._load_outputs(message)
        core.report(Caught(core.since, core.name, message.position))

    def fit(self) -> str:
        """Why this replica cannot take over; empty when it can."""
        if not self.synced:
            return "it has no complete snapshot"
        if self.foreign and not self.caught:
            return "it runs another version and has not reached the hand-over"
        return ""

    # ---- silence ----------------------------------------------------------------------------------------------------

    def silence(self) -> None:
        """Whatever was not answered is said again."""
        core = self.core
        self._asked_log = 0
        for line in core.inputs.values():
            line.ask_anew()
        if not self.receiving:
            self._ask_snapshot()
            return
        self.acknowledge(again=True)
        if core.settings.feed is Feed.DIRECT:
            for number, line in core.inputs.items():
                self._ask_input(number, line.next_seq)
        self.reach_handover()
