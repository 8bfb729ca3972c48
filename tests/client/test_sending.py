"""The machine behind `push`: whatever happens to requests and answers, every record is taken exactly once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.simulator import OWN, Simulation, Trouble

from penstock.client.conversation import Body
from penstock.client.errors import Busy, ClientError, Rejected, Unreachable
from penstock.client.routes import Addresses, LaneAddress, Routes
from penstock.client.sending import GRACE, REACH, SLOW, Identity, Limits, Sender


def parts(pieces, each=20):
    """Numbered records of about 10 bytes."""
    return [[f"{piece}.{n}-------" for n in range(each)] for piece in range(pieces)]


def exactly_once(simulation, result, records):
    found = Counter(simulation.drained())
    expected = Counter(record for part in records for record in part)
    assert found == expected
    assert (result.accepted, result.through, result.pending) == (expected.total(), expected.total(), 0)


ALL = Trouble(lost=0.1, unanswered=0.1, hung=0.02, repeated=0.1, unready=0.1, move=0.1, down=0.02)
CASES = {
    "nothing": Trouble(),
    "lost requests": Trouble(lost=0.3),
    "lost answers": Trouble(unanswered=0.3),
    "hung": Trouble(hung=0.1),
    "late repeats": Trouble(repeated=0.5, unanswered=0.1),
    "pressure": Trouble(room=2500, drain=300),
    "restarts": Trouble(unready=0.3),
    "moves": Trouble(move=2.0),
    "nodes come and go": Trouble(down=0.2),
    "one address alone": Trouble(down=0.1, move=0.5, lost=0.1, unseen=True),
    "everything": ALL,
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(6))
def test_every_record_is_taken_exactly_once(name, seed):
    records = parts(150)
    simulation = Simulation(seed, records, CASES[name])
    exactly_once(simulation, simulation.run(), records)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    trouble=st.builds(
        Trouble,
        **{name: st.floats(0, 0.4) for name in ("lost", "unanswered", "hung", "repeated", "unready", "down")},
        move=st.floats(0, 2), room=st.sampled_from([1500, 5000, 40_000]), drain=st.sampled_from([200, 5000]),
        unseen=st.booleans(),
    ),
    lanes=st.integers(1, 4), nodes=st.integers(1, 4), depth=st.integers(1, 8), window=st.sampled_from([1, 5000, 10**6]),
    mode=st.sampled_from([{}, {"ordered": True}, {"named": True}]),
)  # fmt: skip
def test_whatever_happens(seed, trouble, lanes, nodes, depth, window, mode):
    records = parts(40)
    simulation = Simulation(
        seed, records, trouble, lanes=lanes, nodes=nodes, depth=depth, window=window, deadline=1e6, **mode
    )
    exactly_once(simulation, simulation.run(), records)


@pytest.mark.parametrize("seed", range(10))
def test_in_order_when_that_is_asked_for(seed):
    records = parts(60)
    simulation = Simulation(seed, records, ALL, ordered=True)
    result = simulation.run()
    assert len(result.lanes) == 1
    assert simulation.drained() == [record for part in records for record in part]


def test_a_push_without_trouble_sends_nothing_twice_and_uses_all_lanes():
    records = parts(90)
    simulation = Simulation(1, records, Trouble())
    result = simulation.run()
    assert (result.requests, result.resent, simulation.sends) == (90, 0, 90)
    assert all(400 <= records <= 800 for records in result.lanes.values())


@pytest.mark.parametrize("seed", range(10))
def test_what_is_acknowledged_at_a_failure_is_taken_once_and_counted(seed):
    """A piece that is not JSON stops the push; nothing that was acknowledged is missing, nothing is there twice."""
    records = parts(100)
    simulation = Simulation(seed, records, ALL)
    simulation.refuse = lambda part: part[0].startswith("50.")
    result = simulation.run()
    error = simulation.sender.error
    assert isinstance(error, Rejected)
    assert error.before == 50 * 20
    found = Counter(simulation.drained())
    assert max(found.values()) == 1
    assert result.accepted <= found.total() <= result.accepted + result.pending
    prefix = [record for part in records for record in part][: result.through]
    assert all(record in found for record in prefix)
    assert result.through <= error.before


@pytest.mark.parametrize("seed", range(5))
def test_it_gives_up_when_a_lane_acknowledges_nothing(seed):
    simulation = Simulation(seed, parts(100), Trouble(down=0.0), deadline=20.0)
    simulation.nodes[1].down_until = float("inf")
    simulation.run()
    assert isinstance(simulation.sender.error, Unreachable | ClientError)
    assert 120 - 4 <= simulation.now <= 120 + 20
    assert simulation.sender.result().accepted == 0 or simulation.sender.result().pending > 0


# ---- single rules, event by event ----


def addresses(*urls, revision=1, nodes=None):
    lanes = tuple(LaneAddress(i, f"0.{i}", f"n{url}", url) for i, url in enumerate(urls))
    return Addresses(revision, lanes, "c", {f"n{url}": url for url in urls} if nodes is None else nodes)


def sender(*urls, **limits):
    routes = Routes(OWN)
    routes.learn(addresses(*urls), 0.0)
    return Sender(Identity("id"), routes, Limits(**limits), jitter=lambda attempt: 0.5)


def offered(machine, now=0.0, text=b'"a"\n'):
    assert machine.wants
    machine.offer(Body(text, 1))
    return machine.send(now)


def test_pieces_go_to_the_nodes_of_their_lanes():
    machine = sender("http://127.0.0.1:5", "http://127.0.0.1:6")
    sends = offered(machine) + offered(machine)
    assert {send.lane: send.url for send in sends} == {0: "http://127.0.0.1:5", 1: "http://127.0.0.1:6"}
    assert {send.client for send in sends} == {"id-0", "id-1"}
    assert [send.seq for send in sends] == [1, 1]


def test_no_room_holds_up_its_lane_alone_and_for_as_long_as_the_node_says():
    machine = sender("http://127.0.0.1:5", "http://127.0.0.1:6")
    (first,) = offered(machine)
    machine.later(first, 3.0, Busy("no room", status=429), 1.0)
    for _ in range(4):
        assert [send.lane for send in offered(machine, 2.0)] == [1 - first.lane]
    assert machine.wake_at(2.0) == 4.0
    assert machine.send(3.9) == []
    (again,) = machine.send(4.0)
    assert (again.key, again.body) == ((first.lane, 1, 2), first.body)


def test_the_oldest_piece_is_never_further_behind_than_a_lane_remembers():
    machine = sender("http://127.0.0.1:5", depth=8)
    sends, numbers = offered(machine), set()
    while machine.wants:
        for send in sends:
            numbers.add(send.seq)
            if send.seq == 1:
                machine.later(send, 0.0, ClientError("restarting", status=503), 0.0)
            else:
                machine.accepted(send, 1, 0.0)
        sends = offered(machine)
    assert numbers == set(range(1, REACH + 1))


def test_an_overdue_answer_is_asked_for_and_followed_to_the_new_address():
    machine = sender("http://127.0.0.1:5")
    (first,) = offered(machine)
    assert machine.wake_at(0.0) == SLOW
    assert machine.send(SLOW) == []
    assert machine.question(SLOW) == "http://127.0.0.1:5"
    machine.learned("http://127.0.0.1:5", addresses("http://127.0.0.1:5"), SLOW)
    assert machine.send(SLOW + 0.5) == []  # it is where it was: wait
    assert machine.question(SLOW + 0.5) is None
    machine.send(SLOW + 1.0)
    assert machine.question(SLOW + 1.0) == "http://127.0.0.1:5"
    machine.learned("http://127.0.0.1:5", addresses("http://127.0.0.1:7", revision=2), SLOW + 1.0)
    (again,) = machine.send(SLOW + 1.0)
    assert (again.url, again.key) == ("http://127.0.0.1:7", (0, 1, 2))
    machine.broken(first, Unreachable("reset"), SLOW + 2.0)  # the other one is under way: nothing to do
    assert machine.send(SLOW + 2.1) == []
    machine.accepted(again, 1, SLOW + 2.2)
    machine.accepted(first, 1, SLOW + 2.3)
    machine.end()
    assert machine.done(SLOW + 60.0) is False or machine.result().accepted == 1
    assert machine.result().accepted == 1


def test_a_node_that_does_not_answer_is_gone_round():
    machine = sender("http://127.0.0.1:5")
    (first,) = offered(machine)
    machine.broken(first, Unreachable("refused"), 1.0)
    assert machine.question(1.0) == ""
    (again,) = machine.send(1.5)
    assert (again.url, again.lane, again.seq) == ("", 0, 1)
    machine.broken(again, Unreachable("refused"), 1.6)  # the client's own node is gone as well
    (third,) = machine.send(2.1)
    assert third.url == "http://127.0.0.1:5"


def test_an_address_of_another_cluster_is_used_once():
    machine = sender("http://127.0.0.1:5")
    (first,) = offered(machine)
    machine.elsewhere(first, Rejected("meant for another cluster", status=421), 1.0)
    (again,) = machine.send(1.0)
    assert again.url == ""
    machine.accepted(again, 1, 1.0)
    assert [send.url for send in offered(machine, 1000.0)] == [""]


def test_after_a_refusal_nothing_more_is_sent_and_what_is_under_way_has_a_moment():
    machine = sender("http://127.0.0.1:5")
    first, second = offered(machine) + offered(machine)
    machine.refused(second, Rejected("not JSON", status=422), 1.0)
    assert not machine.wants
    assert not machine.done(1.0)
    assert machine.wake_at(1.0) == 1.0 + GRACE
    machine.accepted(first, 1, 1.5)
    assert machine.done(1.5)
    assert (machine.result().accepted, machine.result().pending) == (1, 1)


def test_a_lane_that_makes_progress_is_not_given_up():
    machine = sender("http://127.0.0.1:5", deadline=10.0)
    first, second = offered(machine) + offered(machine)
    machine.accepted(first, 1, 8.0)
    for now in range(9, 17):
        machine.later(second, 1.0, Busy("no room", status=429), float(now))
        (second,) = machine.send(now + 1.0)
    assert machine.error is None
    machine.later(second, 2.0, Busy("no room", status=429), 17.0)
    assert isinstance(machine.error, Busy)


def test_the_window_bounds_what_is_held():
    machine = sender("http://127.0.0.1:5", window=10)
    sends = []
    while machine.wants:
        sends += offered(machine)
    assert len(sends) == 3  # 12 bytes: the last one began within
    machine.accepted(sends[0], 1, 1.0)
    assert machine.wants


@pytest.mark.parametrize(
    ("own", "told", "used"),
    [
        ("http://127.0.0.1:8700", "http://127.0.0.1:8700/", ""),
        ("http://127.0.0.1:8700", "http://127.0.0.1:8701", "http://127.0.0.1:8701"),
        ("https://example.org:8700", "https://10.0.0.5:8700", "https://10.0.0.5:8700"),
        ("https://example.org:8700", "http://10.0.0.5:8700", ""),  # the token would travel in clear
        ("https://example.org:8700", "https://127.0.0.1:8700", ""),  # that is this machine, not the node's
        ("http://localhost:9000", "http://[::1]:8700", "http://[::1]:8700"),
    ],
)
def test_which_addresses_are_used(own, told, used):
    routes = Routes(own)
    routes.learn(addresses(told), 0.0)
    assert routes.lane_url(0, 0.0) == used


def test_a_node_that_is_behind_does_not_take_back_what_is_known():
    routes = Routes(OWN)
    routes.learn(addresses("http://127.0.0.1:5", revision=4), 10.0)
    routes.learn(addresses("http://127.0.0.1:6", revision=3), 11.0)
    assert routes.lane_url(0, 11.0) == "http://127.0.0.1:5"
    routes.learn(addresses("http://127.0.0.1:6", revision=3), 20.0)  # the model was made anew
    assert routes.lane_url(0, 20.0) == "http://127.0.0.1:6"
