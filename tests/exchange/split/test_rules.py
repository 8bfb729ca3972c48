"""Single rules of a shift, one event after the other."""

from __future__ import annotations

import msgspec
import pytest

from penstock.errors import ExchangeError
from penstock.exchange.keys import Router, even_routing
from penstock.exchange.split import instructions as told
from penstock.exchange.split import routing
from penstock.exchange.split.consumer import Consumer
from penstock.exchange.split.coordinator import Coordinator
from penstock.exchange.split.member import Member
from penstock.exchange.split.messages import Barrier, Open, Outcome, Piece, Prepared, Settled, Staged, Switch, Verdict
from penstock.exchange.split.producer import Producer
from penstock.exchange.split.routing import Phase, Routing

FIRST = routing.first(1)
PARTIES = ("c", "m0", "p0", "p1")
GROUPS = tuple(range(128, 256))


def begin(old: Routing = FIRST) -> Routing:
    record = routing.began(old, 0, 1, GROUPS, PARTIES, "m1")
    assert record is not None
    return record


def switching() -> Routing:
    record = begin()
    assert record.shift is not None
    after = routing.switching(record, record.shift.id, (*PARTIES, "m1"))
    assert after is not None
    return after


SHIFT = begin().shift
assert SHIFT is not None


def producer(*events: object, edges: tuple[int, ...] = (0,), buffer: int = 100) -> Producer:
    machine = Producer("p0", FIRST, edges, buffer)
    for position, event in enumerate(events, 1):
        machine.apply(event, position)  # type: ignore[arg-type]
    return machine


# ---- the record -----------------------------------------------------------------------------------------------------


def test_the_record_moves_only_as_it_may():
    preparing = begin()
    assert preparing.phase is Phase.PREPARING
    assert preparing.table == FIRST.table, "nothing has moved yet"
    assert routing.began(preparing, 0, 2, (1,), PARTIES, "m2") is None, "one at a time"
    assert routing.committed(preparing, SHIFT.id) is None, "nobody has switched"
    assert routing.switching(preparing, SHIFT.id, PARTIES) is None, "the newcomer has not answered"
    now = switching()
    assert routing.finished(now, SHIFT.id, (*PARTIES, "m1")) is None, "not decided"
    after = routing.committed(now, SHIFT.id, term=4)
    assert after is not None
    assert (after.version, after.epoch) == (1, (4, 4))
    assert after.groups(1) == GROUPS
    assert routing.abandoned(after, SHIFT.id) is None, "too late"
    assert routing.finished(after, SHIFT.id, PARTIES) is None, "the newcomer has not settled"
    done = routing.finished(after, SHIFT.id, (*PARTIES, "m1"))
    assert done is not None
    assert (done.shift, done.version, done.executors) == (None, 1, (0, 1))


def test_an_abandoned_shift_changes_no_version_and_waits_for_no_newcomer():
    given_up = routing.abandoned(switching(), SHIFT.id)
    assert given_up is not None
    assert routing.committed(given_up, SHIFT.id) is None
    done = routing.finished(given_up, SHIFT.id, PARTIES)
    assert done is not None
    assert (done.version, done.table) == (0, FIRST.table)


def test_a_restore_keeps_what_was_decided():
    now = switching()
    assert routing.restored(now).table == FIRST.table
    after = routing.committed(now, SHIFT.id)
    assert after is not None
    again = routing.restored(after, term=7)
    assert (again.shift, again.table, again.epoch) == (None, even_routing(2), (7, 5))


@pytest.mark.parametrize(
    ("giver", "taker", "groups", "newcomer"),
    [(0, 1, (1,), ""), (0, 1, range(256), "m1"), (1, 0, (1,), ""), (0, 1, (300,), "m1")],
    ids=["a taker without groups is new", "a move is no split", "not its groups", "no such group"],
)
def test_what_is_no_split(giver, taker, groups, newcomer):
    assert routing.began(FIRST, giver, taker, groups, PARTIES, newcomer) is None


@pytest.mark.parametrize(("taker", "groups"), [(0, (1,)), (1, ()), (255, (1,))])
def test_what_makes_no_sense_is_refused(taker, groups):
    with pytest.raises(ExchangeError, match="cannot go from executor 0"):
        routing.began(FIRST, 0, taker, groups, PARTIES, "m1")


def test_giving_everything_away_retires_the_giver():
    two = Routing((1, 1), 3, even_routing(2))
    record = routing.began(two, 1, 0, two.groups(1), ("p0", "m0", "m1"))
    assert record is not None
    assert record.shift is not None
    assert record.shift.retires


# ---- producers ------------------------------------------------------------------------------------------------------


def test_a_producer_opens_switches_and_releases_in_order():
    machine = producer(edges=(0, 1))
    machine.on_record(begin())
    assert machine.due() is None, "its channels are not open"
    machine.connected(SHIFT.id)
    assert machine.due() == Open(SHIFT)
    assert machine.apply(Open(SHIFT), 1) == [told.Link(1)]
    assert machine.turn(0) == [], "its standby does not know"
    assert machine.turn(1) == [Prepared(SHIFT.id, "p0")]
    assert machine.turn(1) == [], "said once"
    machine.silence()
    assert machine.turn(1) == [Prepared(SHIFT.id, "p0")]

    machine.on_record(switching())
    assert machine.due() == Switch(SHIFT)
    *barriers, route = machine.apply(Switch(SHIFT), 2)
    assert barriers == [told.Tell(0, 0, Barrier(SHIFT)), told.Tell(1, 0, Barrier(SHIFT))]
    assert isinstance(route, told.Route)
    assert (route.table[0], route.table[255], route.held) == (0, 2, 2)
    assert machine.due() is None
    machine.hold(0, "a", 1)
    assert machine.watermark(0, 5) == {0, 1}
    machine.hold(1, "b", 1)
    assert machine.end(1) == {0, 1}

    *released, route = machine.apply(Outcome(SHIFT, True), 3)
    verdicts = [told.Tell(edge, executor, Verdict(SHIFT.id, True)) for edge in (0, 1) for executor in (1, 0)]
    assert released == [
        *verdicts,
        told.Pass(0, 1, "a"),
        told.Advance(0, 1, 5),
        told.Advance(0, 0, 5),
        told.Pass(1, 1, "b"),
        told.Finish(1, 1),
        told.Finish(1, 0),
    ]
    assert isinstance(route, told.Route)
    assert (route.table, route.held) == (even_routing(2), None)
    assert (machine.version, machine.bytes) == (1, 0)


def test_an_abandoned_shift_gives_everything_to_the_giver_and_closes_the_newcomers_channels():
    machine = producer(Open(SHIFT), Switch(SHIFT))
    machine.hold(0, "a", 1)
    machine.watermark(0, 7)
    *released, route = machine.apply(Outcome(SHIFT, False), 3)
    assert released == [
        told.Tell(0, 0, Verdict(SHIFT.id, False)),
        told.Pass(0, 0, "a"),
        told.Advance(0, 0, 7),
        told.Unlink(1),
    ]
    assert route == told.Route(FIRST.table, 1, None)


def test_the_router_takes_the_table_of_a_producer_that_holds_back():
    machine = producer(Open(SHIFT), Switch(SHIFT))
    route = machine.route()
    keys = list(range(200))
    parts = Router(route.slots, route.table).split(keys, None, None)
    assert [part[0] for part in parts] == [0, route.held]


def test_what_is_held_back_is_bounded():
    machine = producer(Open(SHIFT), Switch(SHIFT), buffer=10)
    machine.hold(0, "a", 9)
    assert machine.ready
    machine.hold(0, "b", 9)
    assert not machine.ready
    for mark in range(100):
        machine.watermark(0, mark)
    assert machine.bytes == 18 + 16, "watermarks with nothing between them are one"
    machine.apply(Outcome(SHIFT, False), 3)
    assert machine.ready


def test_a_commit_without_the_barrier_is_a_broken_promise():
    machine = producer(Open(SHIFT))
    with pytest.raises(ExchangeError, match="without this producer's barrier"):
        machine.apply(Outcome(SHIFT, True), 2)
    ended = producer(Open(SHIFT))
    ended.end(0)
    ended.apply(Outcome(SHIFT, True), 2)  # its END was its barrier
    assert ended.table == even_routing(2)


def test_stale_messages_are_refused_and_counted():
    machine = producer(Open(SHIFT), Switch(SHIFT), Outcome(SHIFT, False))
    for event in (Open(SHIFT), Switch(SHIFT), Outcome(SHIFT, True)):
        assert machine.apply(event, 4) == []
    machine.on_record(begin())
    machine.on_record(begin())
    assert sum(machine.refused.values()) == 4
    member = Member("m0", FIRST, (0, 1))
    member.apply(Outcome(SHIFT, False), 1)
    assert member.on_barrier(0, Barrier(SHIFT)) == member.on_piece(Piece(SHIFT.id, 0, 1, {}, b""), 2) == []
    assert member.refused == {"barrier of a shift that is settled": 1, "piece of a shift that is settled": 1}


# ---- members --------------------------------------------------------------------------------------------------------


def test_the_giver_cuts_when_every_input_has_brought_the_barrier_or_ended():
    member = Member("m0", FIRST, (0, 1, 2))
    assert member.on_barrier(0, Barrier(SHIFT)) == []
    assert member.on_barrier(0, Barrier(SHIFT)) == []
    assert member.on_end(1) == []
    assert member.on_barrier(2, Barrier(SHIFT)) == [told.Cut(SHIFT)]
    assert [piece.count for piece in member.pieces([b"a", b"b"], {0: 5})] == [2, 2]
    assert member.on_verdict(Verdict(SHIFT.id, True), 9) == [told.Forget(SHIFT)]
    assert member.on_verdict(Verdict(SHIFT.id, True), 10) == [], "the first one counts"
    with pytest.raises(ExchangeError, match="none was asked for"):
        member.pieces([], {})


def test_an_abandoned_cut_thaws():
    member = Member("m0", FIRST, (0,))
    member.on_barrier(0, Barrier(SHIFT))
    assert member.apply(Outcome(SHIFT, False), 2) == [told.Thaw(SHIFT)]


def test_a_taker_stages_says_so_when_its_standby_knows_and_adopts():
    member = Member("m1", begin(), (0,), newcomer=True)
    member.connected(SHIFT.id)
    assert member.turn(0) == [Prepared(SHIFT.id, "m1")]
    member.on_record(switching())
    assert member.on_piece(Piece(SHIFT.id, 1, 2, {0: 5}, b"b"), 1) == []
    assert member.on_piece(Piece(SHIFT.id, 0, 2, {0: 5}, b"a"), 2) == [told.Stage(SHIFT.id, (b"a", b"b"))]
    assert member.turn(1) == []
    assert member.turn(2) == [Staged(SHIFT.id, "m1")]
    after = routing.committed(switching(), SHIFT.id)
    assert after is not None
    member.on_record(after)
    event = member.due()
    assert event == Outcome(SHIFT, True)
    assert member.apply(event, 3) == [told.Adopt(SHIFT.id, {0: 5})]
    assert member.turn(3) == [Settled(SHIFT.id, "m1")]


def test_a_taker_with_groups_waits_until_its_own_time_has_come():
    member = Member("m1", switching(), (0,))
    member.on_piece(Piece(SHIFT.id, 0, 1, {0: 5}, b"a"), 1)
    assert member.turn(1) == []
    member.advance(0, 4, 2)
    assert member.turn(2) == []
    member.advance(0, 5, 3)
    assert member.turn(3) == [Staged(SHIFT.id, "m1")]


def test_a_commit_without_the_state_is_a_broken_promise():
    member = Member("m1", begin(), (0,), newcomer=True)
    with pytest.raises(ExchangeError, match="neither given away nor taken over"):
        member.on_verdict(Verdict(SHIFT.id, True), 1)


def test_an_abandoned_state_is_discarded():
    member = Member("m1", switching(), (0,))
    member.on_piece(Piece(SHIFT.id, 0, 1, {}, b"a"), 1)
    assert member.apply(Outcome(SHIFT, False), 2) == [told.Discard(SHIFT.id)]


def test_a_consumer_counts_the_newcomer_until_it_is_given_up():
    machine = Consumer("c", FIRST)
    assert machine.apply(Open(SHIFT), 1) == [told.Link(1)]
    assert machine.apply(Outcome(SHIFT, False), 2) == [told.Unlink(1)]
    other = Consumer("c", FIRST)
    other.apply(Open(SHIFT), 1)
    assert other.apply(Outcome(SHIFT, True), 2) == []


# ---- the leader -----------------------------------------------------------------------------------------------------


def test_the_leader_goes_on_by_what_it_is_told():
    leader = Coordinator(begin(), term=2)
    for name in PARTIES:
        assert leader.on_report(Prepared(SHIFT.id, name)) is None
    after = leader.on_report(Prepared(SHIFT.id, "m1"))
    assert after is not None
    assert (after.phase, after.epoch) == (Phase.SWITCHING, (2, 3))
    assert leader.on_record(after) is None
    assert leader.on_report(Staged((9, 9), "m1")) is None
    assert leader.on_report(Prepared(SHIFT.id, "stranger")) is None
    assert leader.refused == {"report of another shift": 2}
    committed = leader.on_report(Staged(SHIFT.id, "m1"))
    assert committed is not None
    leader.on_record(committed)
    assert leader.give_up() is None
    successor = Coordinator(committed, term=3)
    for name in PARTIES:
        successor.on_report(Settled(SHIFT.id, name))
    done = successor.on_report(Settled(SHIFT.id, "m1"))
    assert done is not None
    assert (done.shift, done.epoch) == (None, (3, 5))


# ---- plain data -----------------------------------------------------------------------------------------------------


def test_everything_is_plain_data():
    frames = [Barrier(SHIFT), Verdict(SHIFT.id, True), Piece(SHIFT.id, 0, 1, {0: 5}, b"x")]
    data = msgspec.msgpack.encode([*frames, Open(SHIFT), Switch(SHIFT), Outcome(SHIFT, False)])
    kinds = Barrier | Verdict | Piece | Open | Switch | Outcome
    assert msgspec.msgpack.decode(data, type=list[kinds])[:3] == frames
    record = switching()
    assert msgspec.json.decode(msgspec.json.encode(record), type=Routing) == record


def test_a_producer_goes_on_from_a_checkpoint():
    machine = producer(Open(SHIFT), Switch(SHIFT))
    machine.hold(0, "a", 3)
    machine.watermark(0, 7)
    data = msgspec.msgpack.encode(machine.dump())
    other = producer()
    other.load(msgspec.msgpack.decode(data, type=type(machine.dump())))
    assert other.apply(Outcome(SHIFT, False), 3) == machine.apply(Outcome(SHIFT, False), 3)


def test_a_member_goes_on_from_a_checkpoint():
    member = Member("m0", FIRST, (0, 1))
    member.on_barrier(1, Barrier(SHIFT))
    data = msgspec.msgpack.encode(member.dump())
    other = Member("m0", FIRST, (0, 1))
    other.load(msgspec.msgpack.decode(data, type=type(member.dump())))
    member.on_barrier(0, Barrier(SHIFT))
    assert member.giver.cut
    assert not other.giver.cut, "a checkpoint is a copy"
    assert other.on_barrier(0, Barrier(SHIFT)) == [told.Cut(SHIFT)]
