"""The rules one by one: what BEGIN refuses, what DECIDE weighs, what is rebuilt, what a caller is told."""

from __future__ import annotations

import msgspec
import pytest

from penstock.cluster.transaction import admission, coordinator, rebuild
from penstock.cluster.transaction import instructions as do
from penstock.cluster.transaction.admission import Standing
from penstock.cluster.transaction.answers import Done, Pending, RolledBack, answer
from penstock.cluster.transaction.contact import Contact
from penstock.cluster.transaction.coordinator import ARCHIVED_AFTER, Request, archive
from penstock.cluster.transaction.participant import Participant
from penstock.cluster.transaction.preconditions import Refusal, Why
from penstock.cluster.transaction.rebuild import Blank, Rebuilt, Unnamed, Waiting
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


def test_nobody_is_admitted_unknown_to_others_or_into_an_open_transaction_or_with_an_old_revision():
    store, (_, incarnation) = admission.arrive(cluster(), 0, "c", "nonce", 3000, 0)
    assert store.rev == 6
    for node in ("a", "b"):
        assert admission.admit(store, 0, "c", incarnation, ("l",), 6)[1] is False
        store, _ = coordinator.ack(store, 0, node, 1, ("l",), 6)
    assert admission.admit(store, 0, "c", incarnation, ("l",), 5)[1] is False
    busy, _ = coordinator.begin(store, 0, ask(Kind.ADD))
    assert admission.admit(busy, 0, "c", incarnation, ("l",), 6)[1] is False
    assert admission.admit(store, 0, "c", incarnation, ("l",), 6)[0].members["c"] == incarnation


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


def installed(machine, offers, at=0.0):
    """What `machine` installs when it sees these offers and its own, all confirmed."""
    offers = {name: replace(offer, round="r") for name, offer in offers.items()}
    lease = Lease(incarnation=1, nonce="nonce", expires=3000)
    store = Store(offers=offers, leases={machine.name: lease})
    out = machine.on(do.Done(do.Look(), do.Seen(store, 0)), at)
    return [instruction.rebuilt for instruction in out if isinstance(instruction, do.Install)]


def test_options_versions_and_people_are_kept():
    store = cluster()
    add = Operation(kind=Kind.ADD, model=NAME, digest="d1", version="1.0", options='{"executors": 2}')
    update = Operation(kind=Kind.UPDATE, model=NAME, digest="d2", version="2.0")
    settings = Operation(kind=Kind.UPDATE, model=NAME, config='{"a": 1}')
    online = Operation(kind=Kind.ONLINE, model=NAME, options='{"executors": 3}', config='{"a": 2}')
    for at, operation in enumerate((add, update, settings, online)):
        request = Request(id=f"t{at}", operation=operation, by="a", timeout=1000, user=f"user {at}")
        store, said = coordinator.begin(store, at, request)
        assert said == f"t{at}"
        assert store.txs[said].begun == at
        for node in store.members:
            store, _ = coordinator.vote(store, at, said, node, 1, Vote(True))
        store, _ = coordinator.finish(store, at + 5, said)
    entry = store.models[NAME]
    assert (entry.digest, entry.version, entry.changed, entry.user) == ("d2", "2.0", 3, "user 3")
    assert (entry.options, entry.config) == ('{"executors": 3}', '{"a": 2}')
    first, second, third = entry.history
    assert (first.version, first.options, first.changed, first.user) == ("1.0", '{"executors": 2}', 0, "user 0")
    assert (second.digest, second.version, second.config, second.user) == ("d2", "2.0", "{}", "user 1")
    assert (third.digest, third.config, third.user) == ("d2", '{"a": 1}', "user 2")  # `online` brought other settings


def test_a_key_with_other_options_is_another_request():
    operation = Operation(kind=Kind.ONLINE, model=NAME, options="{}")
    store, _ = coordinator.begin(
        cluster(State.OFFLINE), 0, Request(id="t", operation=operation, by="a", timeout=1000, key="k")
    )
    for options, said in (("{}", "t"), ('{"executors": 2}', None)):
        request = Request(id="u", operation=replace(operation, options=options), by="a", timeout=1000, key="k")
        assert (coordinator.begin(store, 0, request)[1] == said) == (said is not None)


def test_a_lease_that_has_run_out_comes_to_life_again_until_the_node_is_struck_off():
    store = cluster()
    again, said = admission.renew(store, 9000, "b", "b", 3000, 1)
    assert said is Standing.REVIVED
    assert (again.leases["b"].expires, again.leases["b"].since) == (12_000, 9000)
    assert admission.renew(store, 9000, "b", "b", 3000, 0)[1] is Standing.REFUSED
    off, done = admission.forget(store, 9000, "b", 1, 3000)
    assert done
    assert admission.renew(off, 9000, "b", "b", 3000, 1)[1] is Standing.REFUSED


def test_whose_lease_has_run_out_is_waited_for_and_whose_membership_ended_is_not():
    store, _ = coordinator.begin(cluster(), 0, ask(Kind.ADD))
    store, _ = coordinator.vote(store, 0, "t", "a", 1, Vote(True))
    gone = replace(store, leases={"a": store.leases["a"]})
    after, phase = coordinator.vote(gone, 10, "t", "b", 1, Vote(True))
    assert phase is Phase.PREPARING
    assert coordinator.decide(replace(after, leases=store.leases), 10, "t")[1] is Phase.COMMITTING
    assert coordinator.decide(admission.forget(gone, 10, "b", 1, 3000)[0], 10, "t")[1] is Phase.ABORTED


def test_a_node_judges_after_a_whole_lease_and_a_newcomer_only_when_nobody_else_can():
    leases = {
        "a": Lease(incarnation=1, nonce="a", expires=9000, since=4000),
        "new": Lease(incarnation=1, nonce="new", expires=9000),
    }
    store = replace(cluster(), leases=leases)
    assert not admission.forget(store, 6999, "b", 1, 3000, "a")[1]
    assert admission.forget(store, 7000, "b", 1, 3000, "a")[1]
    assert not admission.forget(store, 7000, "b", 1, 3000, "new")[1]
    alone = replace(store, leases={"new": leases["new"]})
    assert admission.forget(alone, 7000, "b", 1, 3000, "new")[1]
    assert not admission.forget(alone, 7000, "b", 1, 3000, "unknown")[1]


def test_contact():
    contact = Contact(3.0)
    assert contact.promise(0.0)
    contact.granted(1.0, goes_on=False)
    for at in range(1, 8):
        contact.granted(1.0 + at / 2, goes_on=True)
        assert not contact.promise(1.0 + at / 2)
        assert contact.may_judge(1.0 + at / 2) == (at >= 6)
    assert not contact.promise(5.5)
    assert contact.promise(5.51)
    contact.granted(5.6, goes_on=True)
    for at in range(1, 8):
        contact.granted(5.6 + at / 2, goes_on=True)
        assert contact.may_judge(5.6 + at / 2) == (at >= 6)
    contact.failed()
    assert not contact.may_judge(9.1)
    assert contact.promise(9.1)
    contact.granted(9.2, goes_on=True)
    assert not contact.may_judge(9.2)
    contact.begins(9.3)
    for at in range(1, 7):
        contact.granted(9.3 + at / 2, goes_on=True)
    assert contact.may_judge(12.3)


def test_who_knows_to_be_the_only_member_asks_nobody():
    machine = Participant("a", "nonce", Journal(node="a", lineage=("l",), rev=5, members=("a",), incarnation=1))
    machine.on(do.Tick(), 0.0)
    alone = replace(cluster(nodes=("a",)), members={"a": 2})
    machine.on(do.Done(do.Look(), do.Seen(alone, 0)), 0.0)
    machine.on(do.Done(do.Arrive(1), do.Granted(Standing.GRANTED, 2)), 0.0)
    for at in range(1, 60):
        assert not any(isinstance(i, (do.AskPeers, do.StopExecutors)) for i in machine.on(do.Tick(), at / 4))
    assert machine.trusted(15.0)


def test_an_ended_transaction_is_archived_and_its_key_still_gives_its_answer():
    store = finished(cluster(), Kind.ADD)
    store = replace(store, txs={"t": replace(store.txs["t"], key="k")}, keys={"k": "t"})
    late = store.txs["t"].deadline + ARCHIVED_AFTER
    assert archive(store, late) == (store, ())
    for node in ("a", "b"):
        store, _ = coordinator.ack(store, 0, node, 1, ("l",), 6)
    assert archive(store, late - 1) == (store, ())
    smaller, (ended,) = archive(store, late)
    assert (smaller.txs, smaller.keys, smaller.models) == ({}, {}, store.models)
    assert answer(replace(smaller, members={"a": 9}), late, ended) == Done("t", 6)
    shown = replace(smaller, txs={"t": ended}, keys={"k": "t"})
    assert coordinator.begin(shown, late, ask(Kind.ADD, "k", "other")) == (shown, "t")


def test_what_was_rolled_back_is_archived():
    store, _ = coordinator.begin(cluster(), 0, ask(Kind.ADD))
    assert archive(store, 10**6) == (store, ())
    store, _ = coordinator.abort(store, 0, "t", "too late")
    smaller, (ended,) = archive(store, 10**6)
    assert smaller.txs == {}
    assert answer(smaller, 10**6, ended) == RolledBack("t", "too late", {})


def test_all_journals_name_everybody_before_a_catalogue_is_rebuilt():
    offers = {"a": replace(journal("a", 3), members=("a",)), "b": journal("b", 3)}
    assert rebuild.rebuild(offers) == Unnamed(frozenset({"a", "b"}))
    machine = Participant("a", "nonce", replace(offers["a"], incarnation=1))
    machine.on(do.Tick(), 0.0)
    assert installed(machine, offers) == []
    machine.on(do.Done(do.Offer(machine.journal), do.Granted(Standing.GRANTED, 1)), 0.0)
    offers["a"] = machine.journal
    machine.on(do.Tick(), 0.0)
    store = Store(
        offers={n: replace(o, round="r") for n, o in offers.items()},
        leases={"a": Lease(incarnation=1, nonce="nonce", expires=3000)},
    )
    out = machine.on(do.Done(do.Look(), do.Seen(store, 0)), 0.0)
    assert [i.journal.members for i in out if isinstance(i, do.Write)] == [("a", "b")]


def test_an_offer_of_an_earlier_round_is_refused():
    first = replace(journal("a", 3), round="r1", opens=True)
    store, done = rebuild.offer(Store(), 0, "a", 3000, first)
    assert done
    assert isinstance(rebuild.rebuild({"a": first}), Blank)
    for late in (replace(first, round="r0"), replace(journal("b", 1), round="r0"), replace(first, round="r2")):
        assert rebuild.offer(store, 0, late.node, 3000, replace(late, opens=False)) == (store, False)
    assert rebuild.offer(Store(), 0, "b", 3000, replace(journal("b", 1), round="r0")) == (Store(), False)
    again, done = rebuild.offer(store, 0, "a", 3000, replace(first, opens=False))
    assert done
    assert rebuild.rebuild(again.offers) == Waiting(frozenset({"b"}))


def test_an_operator_gives_up_nodes_that_do_not_come():
    own = replace(journal("a", 3), incarnation=1)
    machine = Participant("a", "nonce", own)
    machine.on(do.Tick(), 0.0)
    assert installed(machine, {"a": own}) == []
    assert machine.on(do.GivenUp(frozenset({"b"})), 0.0) == []
    machine.on(do.Done(do.Offer(own), do.Granted(Standing.GRANTED, 1)), 0.0)
    (rebuilt,) = installed(machine, {"a": own})
    assert rebuilt.expected == {"a"}
    came = {"a": own, "b": replace(journal("b", 4), incarnation=1)}
    assert rebuild.rebuild(came, without=["b"]).expected == {"a", "b"}
