"""The replica that decides the order, releases output, and brings its standbys up to date."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Hashable
from dataclasses import dataclass
from typing import Any

from penstock.exchange.channel import Verdict
from penstock.exchange.frame import Epoch
from penstock.exchange.replica.assignment import Assignment, Mode
from penstock.exchange.replica.core import Core, Feed
from penstock.exchange.replica.instructions import Debtor, Party, Work
from penstock.exchange.replica.lines import NEVER
from penstock.exchange.replica.messages import (
    Ack,
    Applied,
    AskInput,
    AskLog,
    AskSnapshot,
    Checkpoint,
    Complete,
    Confirm,
    Data,
    Handover,
    Hello,
    Input,
    Log,
    Output,
    Resume,
    Warm,
)
from penstock.exchange.replica.order_log import EVENT


@dataclass
class Follower:
    """What the primary knows of a standby."""

    name: str
    mode: Mode
    foreign: bool = False
    session: int = 0
    """Full snapshots given so far."""
    wanting: bool = True
    """It needs a full snapshot, and none is under way."""
    synced: bool = False
    """The session's snapshot is in force there."""
    gating: bool = False
    """Output waits for its acknowledgements."""
    acked: int = 0
    executed: int = 0
    applied: int = 0
    """The last checkpoint in force there."""
    pending: Checkpoint | None = None
    reported: Epoch = NEVER
    """The assignment for which it was reported to be complete."""
    log_sent: int = 0
    held: dict[int, int] | None = None
    """Input channel -> the next frame that it misses."""

    @property
    def takes_checkpoints(self) -> bool:
        """Whether it is brought forward by checkpoints rather than by executing."""
        return self.mode is Mode.PASSIVE and self.synced and not self.foreign


@dataclass(frozen=True, eq=False)
class Cut:
    """The moment of a checkpoint: the state after log position `position`, and what goes with it."""

    position: int
    base: int | None
    marks: dict[int, int]
    next_out: dict[int, int]
    outputs: dict[int, tuple[Output, ...]]
    digest: int


class Primary:
    """See the module."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.followers: dict[str, Follower] = {}
        self.arrivals: deque[tuple[int, int]] = deque()
        self.released = 0
        """The greatest log position that any output which has left depends on."""
        self.safe_position = core.executed
        self.safe_marks = core.marks()
        """Input channel -> what producers may forget: the log through `safe_position`."""
        self.told_marks: dict[int, tuple[int, int, int]] = {}
        self.recent: deque[tuple[int, int]] = deque(maxlen=64)
        """Digests, for standbys that have not been sent them."""
        self.cut: Cut | None = None
        """A checkpoint whose state is being taken."""
        self.handing = ""
        self.stopped = False

    # ---- appointment ------------------------------------------------------------------------------------------------

    def take_over(self) -> None:
        """Promoted: what the log does not name is ordered now; neighbours are asked where they are."""
        core = self.core
        named = {number: line.taken for number, line in core.inputs.items()}
        for position in range(core.executed + 1, core.log.end + 1):
            step = core.log[position]
            if step.channel != EVENT:
                named[step.channel] = step.seq
        for number, line in core.inputs.items():
            self.arrivals.extend((number, seq) for seq, _ in line.frames(named[number] + 1))
        for out in core.outputs.values():
            out.open = False
        self.ask_neighbours()

    def ask_neighbours(self) -> None:
        """Where every producer has to resume, and what every consumer has already."""
        core = self.core
        for number, line in core.inputs.items():
            core.send(Party.PRODUCER, number, Resume(core.since, number, line.next_seq, line.epoch))
        for number, out in core.outputs.items():
            if not out.open and not out.gone:
                core.send(Party.CONSUMER, number, Hello(core.since, number))

    def assign(self, assignment: Assignment) -> None:
        """The set of standbys changed."""
        for name in [name for name in self.followers if name not in assignment.standbys]:
            del self.followers[name]
        for name, mode in assignment.standbys.items():
            follower = self.followers.get(name)
            if follower is None:
                self.followers[name] = Follower(name, mode, name in assignment.foreign)
            elif name not in assignment.protecting and not follower.synced:
                follower.gating = False
        if self.handing not in assignment.standbys:
            self.handing, self.stopped = "", False
        self.advance()

    # ---- channels ---------------------------------------------------------------------------------------------------

    def on_data(self, message: Data) -> None:
        core = self.core
        line = core.inputs[message.channel]
        verdict = line.receive(message.seq, message.payload)
        if verdict is Verdict.ACCEPT:
            self.arrivals.append((message.channel, message.seq))
            if core.settings.feed is Feed.FORWARD:
                for follower in self.followers.values():
                    if follower.session and not follower.wanting:
                        self._forward(follower, message.channel, message.seq, message.payload)
            self._bound_backlog()
        elif verdict is Verdict.REPEAT:
            core.refuse("repeat")
            self.told_marks.pop(message.channel, None)  # its confirmation may be lost
        else:
            asked = line.ask()
            if asked is not None:
                core.send(Party.PRODUCER, message.channel, Resume(core.since, message.channel, asked, line.epoch))

    def on_hello(self, message: Hello) -> None:
        self.confirm(message.channel)

    def on_confirm(self, message: Confirm) -> None:
        self._check(message.channel, message.next_seq)
        self.core.outputs[message.channel].confirm(message.next_seq, message.consumed, message.safe)
        self.release()

    def _check(self, number: int, next_seq: int) -> None:
        """A consumer that has more than was ever made shows that the output rule was broken, or a step is not
        deterministic."""
        core = self.core
        if core.executed == core.log.end and next_seq > core.outputs[number].next_seq:
            core.alarm(f"{core.name}: the consumer of channel {number} has frames that this replica never made")

    def on_resume(self, message: Resume) -> None:
        self._check(message.channel, message.next_seq)
        line = self.core.outputs[message.channel]
        if line.resume(message.next_seq):
            self.release()
        else:
            self.core.refuse("resume of what was safe")

    def confirm(self, number: int) -> None:
        line = self.core.inputs[number]
        marks = (line.next_seq, line.taken, self.safe_marks.get(number, -1))
        self.told_marks[number] = marks
        self.core.send(Party.PRODUCER, number, Confirm(self.core.since, number, *marks, line.epoch))

    # ---- execution --------------------------------------------------------------------------------------------------

    def next_work(self, blocked: Container[int]) -> Work | None:
        """The next position: from the log after a promotion, else the frame that came first."""
        core = self.core
        if core.executed < core.log.end:
            return core.logged()
        if self.stopped:
            return None
        for place, (number, seq) in enumerate(self.arrivals):
            if number not in blocked:
                del self.arrivals[place]
                return Work(core.executed + 1, number, seq, core.inputs[number][seq], None)
        return None

    def event(self, content: Any) -> Work | None:
        """Something that is no frame happens now; `None` while the log is replayed or the replica has stopped."""
        core = self.core
        if core.executed < core.log.end or self.stopped:
            return None
        return Work(core.executed + 1, EVENT, 0, content, None)

    def after_step(self) -> None:
        """A position was executed."""
        core = self.core
        self.recent.extend(core.digests)
        core.digests.clear()
        self.release()

    def protected_through(self) -> int:
        """The last position that every gating standby has acknowledged."""
        return min((f.acked for f in self.followers.values() if f.gating), default=self.core.executed)

    def debts(self) -> dict[Debtor, Hashable]:
        """Who owes an answer, and how far they are: consumers their confirmation, standbys their acknowledgement."""
        core = self.core
        owed: dict[Debtor, Hashable] = {
            (Party.CONSUMER, number): (line.open, line.consumed)
            for number, line in core.outputs.items()
            if line.waiting
        }
        for follower in self.followers.values():
            if follower.acked < core.log.end or follower.pending is not None or follower.name == self.handing:
                mark = (follower.session, follower.acked, follower.executed, follower.applied)
                owed[Party.REPLICA, follower.name] = mark
        return owed

    # ---- what is safe, what may leave -------------------------------------------------------------------------------

    def release(self) -> None:
        """The output rule: only what every gating standby has acknowledged leaves."""
        core = self.core
        through = min((f.acked for f in self.followers.values() if f.gating), default=None)
        for number, line in core.outputs.items():
            frames, deepest = line.release(through, core.since)
            self.released = max(self.released, deepest)
            for frame in frames:
                core.send(Party.CONSUMER, number, frame)

    def advance(self) -> None:
        """Marks have moved: release, report, forget."""
        core = self.core
        self._move_safe()
        for follower in self.followers.values():
            if follower.synced and not follower.foreign:
                follower.gating = True
        self.release()
        for follower in self.followers.values():
            unknown = follower.name not in core.assignment.protecting and follower.reported < core.assignment.epoch
            if unknown and self._complete(follower):
                follower.reported = core.assignment.epoch
                core.report(Complete(core.assignment.epoch, follower.name))
        self._forget()
        self._hand_over()

    def _complete(self, follower: Follower) -> bool:
        """Whether it could take over: it holds all that output which has left depends on, and all that producers were
        told to be safe. As its acknowledgements are waited for, this stays so."""
        return follower.gating and follower.synced and follower.acked >= max(self.released, self.safe_position)

    def _safe_through(self) -> int:
        limits = [self.core.executed]
        for follower in self.followers.values():
            if follower.gating:
                limits.append(follower.applied if follower.mode is Mode.PASSIVE else follower.acked)
            elif self.core.settings.feed is Feed.DIRECT and follower.session and not follower.wanting:
                limits.append(follower.acked)  # producers alone have what it still needs
        if self.cut is not None and self.core.settings.feed is Feed.DIRECT:
            limits.append(self.cut.position)
        return min(limits)

    def _move_safe(self) -> None:
        through = self._safe_through()
        while self.safe_position < through:
            self.safe_position += 1
            step = self.core.log[self.safe_position]
            if step.channel != EVENT:
                self.safe_marks[step.channel] = step.seq

    def _forget(self) -> None:
        core = self.core
        followers = [f for f in self.followers.values() if f.session and not f.wanting]
        cut = [] if self.cut is None else [self.cut.position]
        core.log.forget_through(min([self.safe_position, core.executed, *cut, *(f.acked for f in followers)]))
        for number, line in core.inputs.items():
            through = line.taken if self.cut is None else self.cut.marks.get(number, -1)
            for follower in followers:
                if follower.held is not None and core.settings.feed is Feed.FORWARD:
                    through = min(through, follower.held.get(number, 0) - 1)
            line.forget_through(through)

    def _bound_backlog(self) -> None:
        """A standby that does not keep up must not fill the memory: it begins anew."""
        if sum(line.bytes for line in self.core.inputs.values()) <= self.core.settings.backlog_bytes:
            return
        for follower in self.followers.values():
            if not follower.gating and not follower.wanting and not (self.stopped and follower.name == self.handing):
                follower.wanting, follower.synced, follower.pending = True, False, None
                self.core.refuse("catch-up begun anew")
        if self.wants_snapshot():
            self.cut = None
        self._forget()

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def wants_snapshot(self) -> bool:
        """Whether a standby waits for a full snapshot."""
        return any(follower.wanting for follower in self.followers.values())

    def base(self) -> int | None:
        """The checkpoint that a next one may be the changes since; `None`: it must be complete."""
        if self.wants_snapshot():
            return None
        bases = {f.applied for f in self.followers.values() if f.takes_checkpoints}
        return bases.pop() if len(bases) == 1 else None

    def due(self) -> bool:
        """Whether a checkpoint taken now would be of use to somebody."""
        return any(f.wanting or self._moves(f) for f in self.followers.values()) and (
            self.core.executed == self.core.log.end and not self.core.busy and self.cut is None
        )

    def _moves(self, follower: Follower) -> bool:
        """Whether a checkpoint brings it forward."""
        return follower.takes_checkpoints and follower.pending is None and follower.applied < self.core.executed

    def begin_checkpoint(self, base: int | None) -> Cut:
        """The state after `executed` is being taken, whole or as changes since what `base()` gave. What happens from
        here on is kept until `checkpoint` brings it."""
        core = self.core
        kept = {number: line.kept() for number, line in core.outputs.items()}
        self.cut = Cut(core.executed, base, core.marks(), core.next_out(), kept, core.digest)
        return self.cut

    def checkpoint(self, cut: Cut, state: Any) -> None:
        """The state at `cut` is there: whole, or as changes since its base."""
        core = self.core
        if cut is not self.cut:
            core.refuse("checkpoint that was given up")
            return
        for follower in self.followers.values():
            if follower.wanting and cut.base is None:
                follower.session += 1
                follower.wanting, follower.synced = False, False
                follower.acked = max(follower.acked, cut.position) if not follower.gating else follower.acked
                follower.log_sent = cut.position
                follower.held = {number: taken + 1 for number, taken in cut.marks.items()}
            elif not self._moves(follower) or cut.base not in (None, follower.applied):
                continue
            follower.pending = Checkpoint(
                core.since,
                follower.session,
                cut.position,
                cut.base,
                state,
                cut.marks,
                cut.next_out,
                cut.outputs,
                cut.digest,
                follower.foreign,
            )
            core.send(Party.REPLICA, follower.name, follower.pending)
            if not follower.synced:
                self._forward_held(follower)
        self.cut = None

    # ---- replication ------------------------------------------------------------------------------------------------

    def _forward(self, follower: Follower, number: int, seq: int, payload: bytes) -> None:
        self.core.send(Party.REPLICA, follower.name, Input(self.core.since, number, seq, payload))

    def _forward_held(self, follower: Follower) -> None:
        if self.core.settings.feed is Feed.FORWARD and follower.held is not None:
            for number, line in self.core.inputs.items():
                for seq, payload in line.frames(follower.held.get(number, 0)):
                    self._forward(follower, number, seq, payload)

    def stream(self) -> None:
        """Send what the standbys have not been sent of the log, and confirm to the producers what has moved."""
        core = self.core
        self.advance()
        safe = {number: line.safe for number, line in core.outputs.items()}
        for follower in self.followers.values():
            if follower.session and not follower.wanting and follower.log_sent < core.log.end:
                first = max(follower.log_sent + 1, core.log.start)  # acknowledged meanwhile, and forgotten
                digests = () if follower.foreign else tuple(d for d in self.recent if d[0] >= first)
                log = Log(core.since, first, core.log.entries(first), digests, safe)
                core.send(Party.REPLICA, follower.name, log)
                follower.log_sent = core.log.end
        for number, line in core.inputs.items():
            if self.told_marks.get(number) != (line.next_seq, line.taken, self.safe_marks.get(number, -1)):
                self.confirm(number)

    def on_ack(self, follower: Follower, message: Ack) -> None:
        if not follower.synced or follower.held is None:
            self.core.refuse("acknowledgement before the snapshot")
            return
        follower.acked = max(follower.acked, message.acked)
        follower.executed = max(follower.executed, message.executed)
        if message.executing and follower.mode is Mode.PASSIVE:
            follower.mode, follower.pending = Mode.ACTIVE, None
        for number, following in message.held.items():
            follower.held[number] = max(follower.held.get(number, 0), following)
        self.advance()

    def on_applied(self, follower: Follower, message: Applied) -> None:
        pending = follower.pending
        if pending is None or pending.position != message.position:
            self.core.refuse("repeat")
            return
        follower.pending = None
        follower.synced = True
        follower.applied = message.position
        follower.acked = max(follower.acked, message.position)
        follower.executed = max(follower.executed, message.position)
        self.advance()

    def on_ask_log(self, follower: Follower, message: AskLog) -> None:
        if follower.session and not follower.wanting:
            follower.log_sent = max(self.core.log.start, message.first) - 1
            self.stream()

    def on_ask_input(self, follower: Follower, message: AskInput) -> None:
        if follower.session and not follower.wanting:
            for seq, payload in self.core.input(message.channel).frames(message.first):
                self._forward(follower, message.channel, seq, payload)

    def on_ask_snapshot(self, follower: Follower, message: AskSnapshot) -> None:
        if message.diverged_at is not None:
            self.core.alarm(f"standby {follower.name} diverged before log position {message.diverged_at}")
        follower.wanting, follower.synced, follower.pending = True, False, None

    # ---- planned promotion ------------------------------------------------------------------------------------------

    def prepare_handover(self, name: str) -> None:
        """The leader wants `name` to take over while this replica is well."""
        if name in self.followers:
            self.handing = name
            self.core.send(Party.REPLICA, name, Warm(self.core.since))
            self._hand_over()

    def _hand_over(self) -> None:
        core = self.core
        follower = self.followers.get(self.handing)
        if follower is None or not follower.synced or self.stopped or core.busy or core.executed < core.log.end:
            return
        if core.executed - follower.executed <= core.settings.handover_lag:
            self.stopped = True
            self.say_handover(follower)

    def say_handover(self, follower: Follower) -> None:
        core = self.core
        kept = {number: line.kept() for number, line in core.outputs.items()}
        message = Handover(core.since, follower.session, core.executed, core.next_out(), kept, core.digest)
        core.send(Party.REPLICA, follower.name, message)

    # ---- silence ----------------------------------------------------------------------------------------------------

    def silence(self) -> None:
        """Whatever was not answered is said again."""
        core = self.core
        for line in core.inputs.values():
            line.ask_anew()
        for out in core.outputs.values():
            if out.open:
                out.again()
        self.ask_neighbours()
        for follower in self.followers.values():
            follower.reported = NEVER
            if not follower.session or follower.wanting:
                continue
            if follower.pending is not None:
                core.send(Party.REPLICA, follower.name, follower.pending)
            follower.log_sent = max(min(follower.log_sent, follower.acked), core.log.start - 1)
            self._forward_held(follower)
            if follower.name == self.handing:
                core.send(Party.REPLICA, follower.name, Warm(core.since))
                if self.stopped:
                    self.say_handover(follower)
        self.told_marks.clear()
        self.stream()
