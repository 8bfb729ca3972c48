"""Channels are added to running replicas and dropped: who hears of it first does not matter."""

from __future__ import annotations

from penstock.exchange.replica import assignment as record
from penstock.exchange.replica.assignment import Mode
from penstock.exchange.replica.instructions import Instruction, Party, Prepare, Send
from penstock.exchange.replica.messages import Checkpoint, Confirm, Data, Input, Log, Run
from penstock.exchange.replica.replica import Replica

IN, OUT, NEW_IN, NEW_OUT = 0, 1, 1 << 40, (1 << 40) + 1


def pair() -> tuple[Replica, Replica]:
    """A primary, and an active standby that has its snapshot; each has one channel in and out."""
    first = record.with_standby(record.first("p"), "s", Mode.ACTIVE)
    assert first is not None
    primary, standby = Replica("p", first, (IN,), (OUT,)), Replica("s", first, (IN,), (OUT,))
    cut = primary.begin_checkpoint()
    assert cut is not None
    carry(primary.checkpoint(cut, b""), primary, standby)
    return primary, standby


def carry(instructions: list[Instruction], primary: Replica, standby: Replica) -> list[Data]:
    """Bring what replicas say to each other; gives the data that left."""
    left: list[Data] = []
    work = [("p", one) for one in instructions]
    while work:
        who, one = work.pop(0)
        here, there, other = (primary, standby, "s") if who == "p" else (standby, primary, "p")
        if isinstance(one, Prepare):
            work += [(who, more) for more in here.prepared(one.checkpoint.position)]
        elif isinstance(one, Send) and one.party is Party.REPLICA:
            work += [(other, more) for more in there.on_message(one.message, here.name)]  # type: ignore[arg-type]
        elif isinstance(one, Send) and isinstance(one.message, Data):
            left.append(one.message)
    return left


def step(replica: Replica, *emitted: tuple[int, bytes]) -> list[Instruction]:
    work = replica.next_work()
    assert work is not None
    return replica.executed(work, emitted)


def test_the_standby_hears_of_channels_from_the_log() -> None:
    primary, standby = pair()
    primary.add_input(NEW_IN)
    primary.add_output(NEW_OUT)
    carry(primary.on_message(Data((1, 1), NEW_IN, 0, b"x")), primary, standby)
    left = carry(step(primary, (NEW_OUT, b"y")), primary, standby)
    left += carry(primary.turn(), primary, standby)
    assert left == []  # the standby has not acknowledged it
    step(standby, (NEW_OUT, b"y"))
    assert standby.core.inputs[NEW_IN].taken == 0
    assert standby.core.outputs[NEW_OUT].next_seq == 1
    assert standby.core.digest == primary.core.digest


def test_a_log_that_names_an_unknown_channel_is_not_acknowledged_before_its_frame_is_there() -> None:
    _, standby = pair()
    standby.on_message(Log((1, 1), 1, (Run(NEW_IN, 0, 1),)), "p")
    assert standby.core.log.end == 1
    assert standby.next_work() is None
    standby.on_message(Input((1, 1), NEW_IN, 0, b"x"), "p")
    assert standby.next_work() is not None


def test_a_checkpoint_may_know_more_channels_and_fewer() -> None:
    _, standby = pair()
    standby.add_output(NEW_OUT + 1)
    told = standby.on_message(
        Checkpoint((1, 1), 2, 7, None, b"", {IN: 3, NEW_IN: 4}, {OUT: 5, NEW_OUT: 6}, {OUT: (), NEW_OUT: ()}, 0), "p"
    )
    assert any(isinstance(one, Prepare) for one in told)
    standby.prepared(7)
    assert {number: line.taken for number, line in standby.core.inputs.items()} == {IN: 3, NEW_IN: 4}
    assert {n: line.next_seq for n, line in standby.core.outputs.items()} == {OUT: 5, NEW_OUT: 6, NEW_OUT + 1: 0}


def test_frames_of_unknown_channels_are_refused_and_come_again() -> None:
    primary = Replica("p", record.first("p"), (IN,), (OUT,))
    assert primary.on_message(Data((1, 1), NEW_IN, 0, b"x")) == []
    assert primary.on_message(Confirm((1, 1), NEW_OUT, 0, -1, -1, (1, 1))) == []
    assert primary.core.refused["unknown channel"] == 2
    primary.add_input(NEW_IN)
    primary.on_message(Data((1, 1), NEW_IN, 0, b"x"))
    assert primary.next_work() is not None


def test_a_channel_without_a_consumer_holds_nothing_up() -> None:
    primary = Replica("p", record.first("p"), (IN,), (OUT,))
    primary.add_output(NEW_OUT)
    primary.add_output(NEW_OUT + 1, counted=False)
    for seq in range(3):
        primary.on_message(Data((1, 1), IN, seq, b"x"))
    big = bytes(primary.core.settings.credit_bytes)
    step(primary, (NEW_OUT + 1, big))
    assert primary.ready  # it carries state
    step(primary, (NEW_OUT, big))
    assert not primary.ready
    primary.drop_output(NEW_OUT)
    assert primary.ready
    assert primary.core.outputs[NEW_OUT].kept() == ()
    step(primary, (NEW_OUT, b"y"))  # a replay may still name it
    assert primary.core.outputs[NEW_OUT].next_seq == 2
    assert primary.core.outputs[NEW_OUT].kept() == ()
