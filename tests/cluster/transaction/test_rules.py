"""The rules one by one: what BEGIN refuses, what DECIDE weighs, what is rebuilt, what a caller is told."""

from __future__ import annotations

import msgspec
import pytest

from penstock.cluster.transaction import admission, coordinator, rebuild
from penstock.cluster.transaction import instructions as do
from penstock.cluster.transaction.admission import Standing
from penstock.cluster.transaction.answers import Done, Pending, RolledBack, answer
from penstock.cluster.transaction.coordinator import Request
from penstock.cluster.transaction.participant import Participant
from penstock.cluster.transaction.preconditions import Refusal, Why
from penstock.cluster.transaction.rebuild import Blank, Rebuilt, Waiting
from penstock.cluster.transaction.records import (
    VERSIONS_KEPT,
    Entry,
    Journal,
    Kind,
    Lease,
    Operation,
    Phase,
    State,
    Store,
    Vote,
)

replace = msgspec.structs.replace
NAME = "default/m"


def cluster(state=None, nodes=("a", "b")):
    models = {} if state is None else {NAME: Entry(name=NAME, generation=4, state=state, digest="d")}
    leases = {node: Lease(incarnation=1, nonce=node, expires=3000) for node in nodes}
    return Store(lineage=("l",), rev=5, members=dict.fromkeys(nodes, 1), leases=leases, models=models)


def ask(kind, key="", id="t", base=None):
    digest = "new" if kind in (Kind.ADD, Kind.UPDATE) else ""
    operation = Operation(kind=kind, model=NAME, digest=digest)
    return Request(id=id, operation=operation, by="a", timeout=1000, key=key, base=base)


def finished(store, kind, id="t", now=0):
    store, said = coordinator.begin(store, now, ask(kind, id=id))
    assert said == id
    for node in store.members:
        store, _ = coordinator.vote(store, now, id, node, 1, Vote(True))
    return coordinator.finish(store, now, id)[0]


@pytest.mark.parametrize("state", [None, *State])
@pytest.mark.parametrize("kind", list(Kind))
def test_preconditions(kind, state):
    allowed = {
        Kind.ADD: {None, State.DELETED},
        Kind.UPDATE: {State.OFFLINE},
        Kind.DELETE: {State.OFFLINE},
        Kind.ONLINE: {State.OFFLINE},
        Kind.OFFLINE: {State.ONLINE},
    }
    before = cluster(state)
    after, said = coordinator.begin(before, 0, ask(kind))
    if state in allowed[kind]:
        assert said == "t"
        assert after.models[NAME].lock == "t"
    else:
        missing = state in (None, State.DELETED)
        assert (after, said.why) == (before, Why.MISSING if missing else Why.STATE)


@pytest.mark.parametrize(
    ("kind", "state", "then"),
    [
        (Kind.ADD, None, State.OFFLINE),
        (Kind.UPDATE, State.OFFLINE, State.OFFLINE),
        (Kind.DELETE, State.OFFLINE, State.DELETED),
        (Kind.ONLINE, State.OFFLINE, State.ONLINE),
        (Kind.OFFLINE, State.ONLINE, State.OFFLINE),
    ],
)
def test_finish_makes_the_next_revision(kind, state, then):
    store = finished(cluster(state), kind)
    entry = store.models[NAME]
    assert (store.rev, entry.generation, entry.state, entry.lock, entry.tx) == (6, 6, then, "", "t")
    assert [v.digest for v in entry.history] == (["d"] if kind is Kind.UPDATE else [])


def test_versions_are_kept_up_to_a_number():
    store = cluster(State.OFFLINE)
    for number in range(VERSIONS_KEPT + 3):
        store = finished(store, Kind.UPDATE, id=f"t{number}")
    assert len(store.models[NAME].history) == VERSIONS_KEPT


def test_a_key_gives_the_first_answer():
    store = finished(cluster(), Kind.ADD)
    store = replace(store, keys={"k": "t"})
    assert coordinator.begin(store, 0, ask(Kind.ADD, "k", "other"))[1] == "t"
    refusal = coordinator.begin(store, 0, ask(Kind.DELETE, "k", "other"))[1]
    assert isinstance(refusal, Refusal)
    assert refusal.why is Why.KEY


def test_begin_names_the_nodes_that_are_not_there():
    store = cluster()
    store = replace(store, leases={**store.leases, "b": replace(store.leases["b"], expires=10)})
    after, refusal = coordinator.begin(store, 10, ask(Kind.ADD))
    assert after is store
    assert (refusal.why, refusal.nodes) == (Why.UNAVAILABLE, {"b": "its lease ran out"})


def test_a_change_based_on_another_state_is_refused():
    assert coordinator.begin(cluster(State.OFFLINE), 0, ask(Kind.UPDATE, base=3))[1].why is Why.UNAVAILABLE
    assert coordinator.begin(cluster(State.OFFLINE), 0, ask(Kind.UPDATE, base=4))[1] == "t"


def test_one_no_rolls_back_with_its_reason_and_frees_the_name():
    store, _ = coordinator.begin(cluster(), 0, ask(Kind.ADD))
    store, _ = coordinator.vote(store, 0, "t", "a", 1, Vote(True))
    store, phase = coordinator.vote(store, 0, "t", "b", 1, Vote(False, "no space left"))
    assert phase is Phase.ABORTED
    assert answer(store, 0, store.txs["t"]) == RolledBack("t", "b: no space left", {"b": "no space left"})
    assert store.models == {}
    assert coordinator.vote(store, 0, "t", "b", 1, Vote(True))[0] is store


def test_only_the_incarnation_that_was_asked_votes():
    store, _ = coordinator.begin(cluster(), 0, ask(Kind.ADD))
    assert coordinator.vote(store, 0, "t", "a", 2, Vote(True))[0] is store
    assert coordinator.vote(store, 0, "t", "stranger", 1, Vote(True))[0] is store


def test_after_the_deadline_nothing_is_committed():
    store, _ = coordinator.begin(cluster(), 0, ask(Kind.ADD))
    store, _ = coordinator.vote(store, 999, "t", "a", 1, Vote(True))
    store, phase = coordinator.vote(store, 1000, "t", "b", 1, Vote(True))
    assert (phase, store.txs["t"].reason) == (Phase.ABORTED, "decided after the deadline")


def test_committing_is_never_aborted():
    store, _ = coordinator.begin(cluster(), 0, ask(Kind.ADD))
    for node in ("a", "b"):
        store, phase = coordinator.vote(store, 0, "t", node, 1, Vote(True))
    assert phase is Phase.COMMITTING
    assert coordinator.abort(store, 0, "t", "late")[0] is store
    assert coordinator.decide(store, 10**9, "t")[0] is store


def test_done_means_that_all_have_it_or_are_lost():
    store = finished(cluster(), Kind.ADD)
    tx = store.txs["t"]
    assert answer(store, 0, tx) == Pending("t", True, ("a", "b"))
    store, _ = coordinator.ack(store, 0, "a", 1, ("l",), 6)
    assert answer(store, 0, store.txs["t"]) == Pending("t", True, ("b",))
    assert answer(admission.leave(store, 0, "b", 1)[0], 0, store.txs["t"]) == Done("t", 6)
    assert coordinator.ack(store, 0, "b", 1, ("other",), 6) == (store, False)
    assert coordinator.ack(store, 0, "b", 1, ("l",), 7) == (store, False)


def test_nobody_is_admitted_into_an_open_transaction_or_with_an_old_revision():
    store, (_, incarnation) = admission.arrive(cluster(), 0, "c", "nonce", 3000, 0)
    assert admission.admit(store, 0, "c", incarnation, ("l",), 4)[1] is False
    busy, _ = coordinator.begin(store, 0, ask(Kind.ADD))
    assert admission.admit(busy, 0, "c", incarnation, ("l",), 5)[1] is False
    assert admission.admit(store, 0, "c", incarnation, ("l",), 5)[0].members["c"] == incarnation


def test_a_lease_from_a_clock_that_was_moved_back_is_shortened():
    store = replace(cluster(), leases={"a": Lease(incarnation=1, nonce="dead", expires=60_000)})
    store, (standing, _) = admission.arrive(store, 0, "a", "new", 3000, 0)
    assert standing is Standing.REFUSED
    assert admission.arrive(store, 3000, "a", "new", 3000, 0)[1] == (Standing.GRANTED, 1)


def journal(node, rev, **rest):
    return Journal(node=node, lineage=("l",), rev=rev, members=("a", "b"), **rest)


def test_rebuilding_waits_for_all_that_are_named():
    offers = {"a": journal("a", 3), "new": Journal(node="new")}
    assert rebuild.rebuild(offers) == Waiting(frozenset({"b"}))
    assert isinstance(rebuild.rebuild(offers, without=["b"]), Rebuilt)
    assert isinstance(rebuild.rebuild({"new": Journal(node="new")}), Blank)


@pytest.mark.parametrize("decided", [True, False])
def test_rebuilding_commits_what_is_journalled_as_decided(decided):
    store, _ = coordinator.begin(cluster(State.OFFLINE), 0, ask(Kind.ONLINE, key="k"))
    tx = store.txs["t"]
    models = {NAME: Entry(name=NAME, generation=4, state=State.OFFLINE, digest="d")}
    offers = {node: journal(node, 5, models=models, prepared={"t": tx}) for node in ("a", "b")}
    if decided:
        offers["b"] = replace(offers["b"], decided={"t": tx})
    rebuilt = rebuild.rebuild(offers)
    assert rebuilt.models[NAME].state is (State.ONLINE if decided else State.OFFLINE)
    assert rebuilt.rev > 5
    store, _ = rebuild.install(Store(offers=offers), 0, offers, "l2", rebuilt)
    assert store.lineage == ("l", "l2")
    assert ("k" in store.keys) == decided


def test_an_old_decision_is_not_applied_to_a_later_model_of_that_name():
    store, _ = coordinator.begin(cluster(), 0, ask(Kind.ADD))
    tx = store.txs["t"]
    gone = {NAME: Entry(name=NAME, generation=7, state=State.DELETED)}
    rebuilt = rebuild.rebuild({"a": journal("a", 7, models=gone), "b": journal("b", 5, decided={"t": tx})})
    assert rebuilt.models[NAME].state is State.DELETED


def test_a_node_of_another_catalogue_refuses_to_take_part():
    machine = Participant("x", "nonce", Journal(node="x", lineage=("other",), rev=9))
    assert machine.on(do.Tick(), 0.0) == [do.Look()]
    assert machine.on(do.Done(do.Look(), do.Seen(cluster(), 0)), 0.0) == []
    assert "another catalogue" in machine.problem
    assert not machine.ready(0.0)


def test_a_stop_that_fails_is_asked_for_again_while_redis_is_away():
    machine = Participant("a", "nonce")
    machine.on(do.Tick(), 0.0)
    online = cluster(State.ONLINE)
    assert do.Arrive(0) in machine.on(do.Done(do.Look(), do.Seen(online, 0)), 0.0)
    out = machine.on(do.Done(do.Arrive(0), do.Granted(Standing.GRANTED, 2)), 0.0)
    (apply,) = (instruction for instruction in out if isinstance(instruction, do.Apply))
    machine.on(do.Done(apply), 0.1)
    assert machine.trusted(1.9)
    (stop,) = (i for i in machine.on(do.Tick(), 2.0) if isinstance(i, do.StopExecutors))
    assert not machine.trusted(2.0)
    assert stop not in machine.on(do.Failed(stop, "busy"), 2.1)
    assert any(isinstance(i, do.StopExecutors) for i in machine.on(do.Tick(), 2.2))
