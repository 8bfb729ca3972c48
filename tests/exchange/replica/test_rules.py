"""The rules one by one, on two machines that talk without a network."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from penstock.errors import ExchangeError
from penstock.exchange.channel import Verdict
from penstock.exchange.replica import assignment as record
from penstock.exchange.replica.assignment import Assignment, Mode
from penstock.exchange.replica.core import ReplicaSettings
from penstock.exchange.replica.instructions import Activate, Alarm, Install, Party, Prepare, Retire, Send
from penstock.exchange.replica.lines import InputLine, OutputLine
from penstock.exchange.replica.messages import (
    Ack,
    Applied,
    Caught,
    Complete,
    Confirm,
    Data,
    Diverged,
    Hello,
    Input,
    Log,
    Output,
    Refused,
    Resume,
    Run,
    Step,
)
from penstock.exchange.replica.order_log import OrderLog
from penstock.exchange.replica.replica import Replica

ONE = (1, 1)


def sent(instructions: list[Any], kind: type) -> list[Any]:
    return [i.message for i in instructions if isinstance(i, Send) and isinstance(i.message, kind)]


class Pair:
    """Primary `a` and standby `b` with input channels 0 and 1 and output channel 2."""

    def __init__(self, mode: Mode = Mode.PASSIVE, *, foreign: bool = False, **settings: Any) -> None:
        alone = record.first("a")
        both = record.with_standby(alone, "b", mode, foreign=foreign)
        assert both is not None
        self.record: Assignment = both
        chosen = ReplicaSettings(**settings)
        self.a = Replica("a", alone, [0, 1], [2], chosen)
        self.b = Replica("b", both, [0, 1], [2], chosen)
        self.seen: list[Any] = []
        self.tell(self.a.on_assignment(both))

    def tell(self, instructions: list[Any], *, skip: tuple[type, ...] = ()) -> None:
        """Pass on what is for the other replica; remember everything."""
        self.seen += instructions
        for instruction in instructions:
            if not isinstance(instruction, Send) or instruction.party is not Party.REPLICA:
                continue
            if isinstance(instruction.message, skip):
                continue
            machine, sender = (self.b, "a") if instruction.target == "b" else (self.a, "b")
            self.tell(machine.on_message(instruction.message, sender), skip=skip)

    def data(self, channel: int, seq: int, **how: Any) -> None:
        self.tell(self.a.on_message(Data(ONE, channel, seq, b"%d/%d" % (channel, seq))), **how)

    def work(self, machine: Replica | None = None, draws: tuple[Any, ...] = (), tag: bytes = b"") -> list[Any]:
        machine = machine or self.a
        work = machine.next_work()
        assert work is not None
        instructions = machine.executed(work, [(2, work.content + tag)], work.draws or draws)
        self.tell(instructions)
        return instructions

    def checkpoint(self) -> None:
        cut = self.a.begin_checkpoint(self.a.checkpoint_base())
        assert cut is not None
        self.tell(self.a.checkpoint(cut, "state"))

    def prepared(self) -> None:
        position = [i.checkpoint.position for i in self.seen if isinstance(i, Prepare)][-1]
        self.tell(self.b.prepared(position))

    def protect(self) -> None:
        """Bring the standby to the point where it protects."""
        self.checkpoint()
        self.prepared()
        self.turn()
        (report,) = sent(self.seen, Complete)
        new = record.protected(self.record, "b", report.epoch)
        assert new is not None
        self.assign(new)

    def assign(self, new: Assignment) -> list[Any]:
        self.record = new
        self.tell(self.a.on_assignment(new))
        instructions = self.b.on_assignment(new)
        self.tell(instructions)
        return instructions

    def turn(self, **how: Any) -> list[Any]:
        instructions = self.a.turn()
        self.tell(instructions, **how)
        back = self.b.turn()
        self.tell(back, **how)
        return instructions + back

    def out(self) -> list[int]:
        return [message.seq for message in sent(self.seen, Data)]


def test_without_a_standby_output_leaves_at_once_and_input_is_safe_when_processed():
    pair = Pair()
    pair.data(0, 0)
    pair.work()
    assert pair.out() == [0]
    (confirm,) = [c for c in sent(pair.turn(), Confirm) if c.channel == 0]
    assert (confirm.next_seq, confirm.consumed, confirm.safe) == (1, 0, 0)


def test_output_leaves_when_the_standby_has_acknowledged_what_it_depends_on():
    pair = Pair()
    pair.protect()
    pair.data(0, 0)
    pair.work()
    assert pair.out() == []
    pair.turn()
    assert pair.out() == [0]


def test_the_log_is_not_acknowledged_without_the_inputs_that_it_names():
    pair = Pair()
    pair.protect()
    pair.data(0, 0, skip=(Input,))
    pair.work()
    pair.turn()
    assert pair.out() == []
    pair.tell(pair.a.silence())
    pair.turn()
    assert pair.out() == [0]


def test_inputs_are_kept_until_the_standby_has_applied_a_checkpoint():
    pair = Pair()
    pair.protect()
    pair.data(0, 0)
    pair.work()
    pair.turn()
    assert pair.a.role.safe_marks[0] == -1
    pair.checkpoint()
    pair.turn()
    assert pair.a.role.safe_marks[0] == -1
    assert pair.b.core.inputs[0].bytes > 0
    pair.prepared()
    pair.turn()
    assert pair.a.role.safe_marks[0] == 0
    assert pair.b.core.inputs[0].bytes == pair.a.core.inputs[0].bytes == 0
    assert len(pair.a.core.log) == len(pair.b.core.log) == 0


def test_a_promoted_standby_repeats_the_order_and_the_draws_and_sends_only_what_is_missing():
    pair = Pair()
    pair.protect()
    for channel, seq in ((1, 0), (0, 0), (1, 1)):
        pair.data(channel, seq)
    pair.work(draws=(7,))
    pair.work()
    pair.turn()
    assert pair.out() == [0, 1]
    new = record.promoted(pair.record, "b")
    assert new is not None
    instructions = pair.b.on_assignment(new)
    assert [i for i in instructions if isinstance(i, Activate)] == [Activate(0)]
    assert {r.channel: r.next_seq for r in sent(instructions, Resume)} == {0: 1, 1: 2}
    assert [h.channel for h in sent(instructions, Hello)] == [2]
    first = pair.b.next_work()
    assert first is not None
    assert (first.channel, first.seq, first.draws) == (1, 0, (7,))
    pair.seen.clear()
    pair.tell(pair.b.executed(first, [(2, b"x")], (7,)))
    pair.work(pair.b)
    pair.work(pair.b)  # its own order now: the frame that the log did not name
    assert pair.out() == [], "nobody knows yet what the consumer has"
    pair.tell(pair.b.on_message(Confirm(ONE, 2, 2, 1, 0, new.epoch)))
    assert pair.out() == [2]


def test_the_old_primary_is_fenced_by_replicas_and_by_neighbours():
    pair = Pair()
    pair.protect()
    new = record.promoted(pair.record, "b")
    assert new is not None
    pair.b.on_assignment(new)
    pair.data(0, 0)
    pair.work()
    pair.turn()
    assert pair.out() == []
    assert pair.b.core.refused["older epoch"] >= 2
    assert any(isinstance(i, Retire) for i in pair.a.on_message(Confirm(ONE, 2, 0, -1, -1, new.epoch)))
    assert pair.a.retired
    assert pair.a.next_work() is None


def test_an_older_producer_is_refused_and_counted():
    pair = Pair()
    pair.tell(pair.a.on_message(Hello((2, 1), 0)))
    pair.data(0, 0)
    assert pair.a.next_work() is None
    assert pair.a.core.refused["older epoch"] == 1


def test_a_standby_without_a_snapshot_refuses_to_take_over():
    pair = Pair()
    new = Assignment((1, 9), (1, 9), "b")
    instructions = pair.b.on_assignment(new)
    assert sent(instructions, Refused)
    assert any(isinstance(i, Alarm) for i in instructions)
    assert pair.b.retired


def test_a_standby_is_not_complete_before_it_has_what_left_without_it():
    pair = Pair()
    pair.checkpoint()
    pair.data(0, 0)
    pair.work()
    assert pair.out() == [0]
    pair.tell(pair.a.turn(), skip=(Log,))
    pair.prepared()
    assert not sent(pair.seen, Complete)
    pair.tell(pair.a.silence())
    pair.turn()
    pair.turn()
    assert sent(pair.seen, Complete)


def test_divergence_is_found_and_a_new_snapshot_asked_for():
    pair = Pair(Mode.ACTIVE, digest_every=1)
    pair.protect()
    pair.data(0, 0)
    pair.work()
    pair.turn()
    pair.work(pair.b, tag=b"!")
    (report,) = sent(pair.seen, Diverged)
    assert (report.standby, report.position) == ("b", 1)
    assert pair.a.snapshot_wanted()
    assert sum(isinstance(i, Alarm) for i in pair.seen) == 2
    pair.checkpoint()
    pair.prepared()
    assert pair.b.core.executed == 1
    assert pair.b.role.synced


def test_a_planned_promotion_stops_at_a_position_and_carries_the_output_over():
    pair = Pair(Mode.ACTIVE, foreign=True, handover_lag=0)
    pair.checkpoint()
    assert [i.checkpoint.migrate for i in pair.seen if isinstance(i, Prepare)] == [True]
    pair.prepared()
    pair.data(0, 0)
    pair.data(0, 1)
    pair.work()
    pair.tell(pair.a.on_handover_wanted("b"))
    assert not pair.a.role.stopped, "the other one is behind"
    pair.turn()
    work = pair.b.next_work()
    assert work is not None
    pair.tell(pair.b.executed(work, [(2, b"new"), (2, b"new")]))  # another version says it otherwise
    pair.turn()
    assert pair.a.role.stopped
    assert pair.a.next_work() is None
    (caught,) = sent(pair.seen, Caught)[:1]
    assert caught.position == 1
    new = record.handed_over(pair.record, "b")
    assert new is not None
    pair.assign(new)
    assert pair.a.retired
    assert pair.b.core.outputs[2].next_seq == 1
    assert [o.payload for o in pair.b.core.outputs[2].kept()] == [b"0/0"]
    pair.seen.clear()
    pair.tell(pair.b.on_message(Confirm(ONE, 2, 1, 0, 0, new.epoch)))
    pair.work(pair.b)
    assert pair.out() == [1]


def test_a_given_up_promotion_lets_the_primary_go_on():
    pair = Pair(Mode.ACTIVE)
    pair.protect()
    pair.tell(pair.a.on_handover_wanted("b"))
    assert pair.a.role.stopped
    new = record.without_standby(pair.record, "b")
    assert new is not None
    pair.assign(new)
    pair.data(0, 0)
    pair.work()
    assert pair.out() == [0]


def test_memory_is_bounded_when_the_standby_is_silent():
    pair = Pair(backlog_bytes=20)
    pair.protect()
    taken = 0
    for seq in range(50):
        pair.data(0, seq, skip=(Input,))
        if pair.a.ready:
            pair.work()
            taken += 1
    assert not pair.a.ready
    assert taken < 12


def test_a_slow_catch_up_begins_anew_instead_of_filling_the_memory():
    pair = Pair(backlog_bytes=20)
    pair.checkpoint()
    for seq in range(50):
        pair.data(0, seq, skip=(Input,))
        pair.work()
    assert pair.a.snapshot_wanted()
    assert pair.a.core.inputs[0].bytes <= 24
    assert pair.a.core.refused["catch-up begun anew"] > 0


def test_a_channel_behind_a_barrier_waits_and_keeps_its_order():
    pair = Pair()
    for channel, seq in ((0, 0), (1, 0), (0, 1), (1, 1)):
        pair.data(channel, seq)
    taken = []
    for blocked in ((0,), (0,), (0,), (), ()):
        work = pair.a.next_work(blocked)
        if work is not None:
            taken.append((work.channel, work.seq))
            pair.a.executed(work, [])
    assert taken == [(1, 0), (1, 1), (0, 0), (0, 1)]


def test_a_running_executor_without_recovery_can_be_moved():
    pair = Pair(handover_lag=0)
    pair.a.begin_at({0: 4, 1: -1}, {2: 9})
    pair.data(0, 5)
    pair.work()
    assert pair.out() == [9]
    pair.protect()
    pair.tell(pair.a.on_handover_wanted("b"))
    pair.turn()
    assert sent(pair.seen, Caught)
    new = record.handed_over(pair.record, "b")
    assert new is not None
    instructions = pair.assign(new)
    assert {r.channel: r.next_seq for r in sent(instructions, Resume)} == {0: 6, 1: 0}
    assert pair.b.core.outputs[2].next_seq == 10


def test_events_are_positions_and_wait_for_the_replay():
    pair = Pair()
    pair.protect()
    work = pair.a.event("timer")
    assert work is not None
    pair.tell(pair.a.executed(work, [(2, b"fired")], (3,)))
    pair.turn()
    new = record.promoted(pair.record, "b")
    assert new is not None
    pair.b.on_assignment(new)
    assert pair.b.event("timer") is None
    again = pair.b.next_work()
    assert again is not None
    assert (again.channel, again.content, again.draws) == (-1, "timer", (3,))


def test_a_position_is_reported_once():
    pair = Pair()
    pair.data(0, 0)
    work = pair.a.next_work()
    assert work is not None
    pair.a.executed(work, [])
    with pytest.raises(ExchangeError, match="position 1 was executed, but 2 was due"):
        pair.a.executed(work, [])


def test_install_comes_only_after_it_was_prepared():
    pair = Pair()
    pair.checkpoint()
    assert not [i for i in pair.seen if isinstance(i, Install)]
    assert not sent(pair.b.turn(), Ack)
    pair.prepared()
    assert [i.position for i in pair.seen if isinstance(i, Install)] == [0]
    assert sent(pair.seen, Applied)


def test_the_order_log_travels_in_runs():
    log = OrderLog()
    for step in (Step(0, 0), Step(0, 1), Step(1, 0), Step(1, 1, None, (5,)), Step(1, 2), Step(-1, 0, "timer")):
        log.append(step)
    entries = log.entries(1)
    assert entries == (Run(0, 0, 2), Run(1, 0, 1), Step(1, 1, None, (5,)), Run(1, 2, 1), Step(-1, 0, "timer"))
    other = OrderLog(2)
    assert other.receive(1, entries)
    assert other.entries(3) == log.entries(3)
    assert not other.receive(8, entries)
    log.forget_through(3)
    with pytest.raises(ExchangeError, match="begins at 4"):
        log.entries(3)


def test_lines_keep_what_is_not_safe():
    line = InputLine(0)
    assert [line.receive(seq, b"x") for seq in (0, 2, 0, 1)] == [
        Verdict.ACCEPT, Verdict.GAP, Verdict.REPEAT, Verdict.ACCEPT,
    ]  # fmt: skip
    out = OutputLine(0, 2)
    for position in (1, 2, 3):
        out.emit(position, b"x")
    assert not out.ready
    assert [frame.seq for frame in out.release(2, ONE)[0]] == [0, 1]
    out.confirm(2, 1, 0)
    assert out.ready
    assert out.kept() == (Output(1, 2, b"x"), Output(2, 3, b"x"))
    assert not out.resume(0)
    assert out.resume(1)
    assert [frame.seq for frame in out.release(None, ONE)[0]] == [1, 2]


def test_the_record_moves_only_as_it_may():
    one = record.first("a")
    assert record.with_standby(one, "b", Mode.PASSIVE, foreign=True) is None
    two = record.with_standby(one, "b", Mode.PASSIVE)
    assert two is not None
    assert two.degraded
    assert record.promoted(two, "b") is None
    assert record.protected(two, "b", one.epoch) is None, "reported for an older record"
    three = record.protected(two, "b", two.epoch)
    assert three is not None
    assert not three.degraded
    four = record.promoted(three, "b", term=5)
    assert four is not None
    assert (four.epoch, four.since, four.primary, four.standbys) == ((5, 4), (5, 4), "b", {})


def test_messages_are_plain_data():
    message = Log(ONE, 1, (Run(0, 0, 2), Step(1, 0, None, (0.5, "x"))), ((2, 77),), {2: 5})
    data = msgspec.msgpack.encode(message)
    assert msgspec.msgpack.decode(data, type=Log | Input | Ack) == message
