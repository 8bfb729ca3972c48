"""The pure parts of membership and leadership."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.cluster.leader import Leadership
from penstock.cluster.membership import Lease, Standing


def test_a_lease_is_trusted_for_two_thirds_from_when_the_request_was_sent():
    lease = Lease(3.0)
    assert lease.standing(0.0) is Standing.OUT
    lease.granted(10.0, 1)
    assert lease.standing(11.99) is Standing.MEMBER
    assert lease.standing(12.0) is Standing.OUT
    lease.granted(11.0, 1)
    lease.granted(10.5, 1)  # an answer that was late: it takes nothing away
    assert lease.trusted_until() == 13.0


def test_refused_is_out_at_once_and_an_old_incarnation_brings_nothing_back():
    lease = Lease(3.0)
    lease.granted(1.0, 2)
    lease.refused()
    assert lease.standing(1.0) is Standing.OUT
    lease.granted(1.5, 1)
    assert lease.standing(1.5) is Standing.OUT
    lease.granted(2.0, 3)
    assert lease.standing(2.0) is Standing.MEMBER
    assert lease.incarnation == 3


@given(st.lists(st.tuples(st.floats(0.01, 2.0), st.floats(0.0, 2.0), st.booleans()), min_size=1, max_size=40))
def test_a_node_never_trusts_a_lease_that_redis_has_let_run_out(rounds):
    """Each round: time until the renewal is sent, time until Redis handles it, whether the answer comes back."""
    seconds, now, expires = 3.0, 0.0, None
    lease = Lease(seconds)
    for wait, travel, answered in rounds:
        now += wait
        sent_at = now
        handled = now + travel
        if expires is not None and handled >= expires:
            expires = None  # it ran out before: refused
            now = handled
            if answered:
                lease.refused()
        else:
            expires = handled + seconds
            now = handled
            if answered:
                lease.granted(sent_at, 1)
        if lease.standing(now) is Standing.MEMBER:
            assert expires is not None
            assert lease.trusted_until() < expires


def test_a_leader_stops_at_two_thirds_and_may_still_renew():
    state = Leadership(3.0)
    state.answered("a", sent_at=0.0, won=True, term=4, leader="a")
    assert (state.held(1.9), state.held(2.0)) == (4, 0)
    assert state.claimed == 4
    state.answered("a", sent_at=2.5, won=True, term=4, leader="a")
    assert state.held(4.4) == 4
    state.answered("a", sent_at=2.6, won=False, term=5, leader="b")
    assert (state.held(2.6), state.leader, state.term) == (0, "b", 5)


def test_a_late_answer_about_an_older_term_changes_nothing():
    state = Leadership(3.0)
    state.answered("a", sent_at=0.0, won=False, term=7, leader="b")
    state.answered("a", sent_at=0.0, won=True, term=6, leader="a")
    assert (state.term, state.leader, state.held(0.1)) == (7, "b", 0)
