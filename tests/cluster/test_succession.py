"""What the leader decides about replicas: who protects, who takes over, when everything is restored."""

from __future__ import annotations

import msgspec
import pytest
from tests.cluster.test_reconcile import entry

from penstock.cluster.decisions import GiveUp, Later, Nothing, Sweep, WritePlan
from penstock.cluster.plan import Lives, ModelState, Plan, RunEntry, executor_of, status
from penstock.cluster.reconcile import FAILURES_ALLOWED, decide
from penstock.cluster.succession import SILENCES_ALLOWED
from penstock.exchange.replica.assignment import Mode
from penstock.exchange.replica.messages import Complete, Diverged, Refused
from penstock.worker.messages import Epoch

LIVE = {name: Lives(incarnation=1) for name in "abc"}
ALL = ("0.0", "0.1", "1.0", "1.1")


class Case:
    """A model with replicas at one moment, to be changed and asked about."""

    def __init__(self, recovery="active", live=LIVE, **changes):
        self.live, self.term, self.now = dict(live), 4, 100.0
        self.state = ModelState(entry=entry(recovery=recovery, **changes))
        self.write()
        self.run()

    @property
    def plan(self) -> Plan:
        assert self.state.plan is not None
        return self.state.plan

    def change(self, **changes):
        self.state = msgspec.structs.replace(self.state, **changes)

    def decide(self):
        return decide(self.state, self.live, self.term, self.now)

    def write(self):
        """Decide, and put the plan in force."""
        decision = self.decide()
        assert isinstance(decision, WritePlan), decision
        revision = decision.plan.revision
        assert revision > self.state.entry.counter
        assert all(record.epoch[1] <= revision for record in decision.plan.records.values())
        counted = msgspec.structs.replace(self.state.entry, counter=revision)
        moves = {name: move for name, move in self.state.moves.items() if name not in decision.settled}
        self.change(plan=decision.plan, entry=counted, moves=moves)
        return decision

    def settle(self):
        """Decide until there is nothing to do, waiting where that is wanted; everything that is planned runs."""
        for _ in range(20):
            decision = self.decide()
            if isinstance(decision, Later):
                self.now = decision.at
            elif isinstance(decision, WritePlan):
                self.write()
                self.run()
            else:
                return decision
        raise AssertionError("it does not settle")

    def run(self, state="running"):
        """Whatever is planned runs."""
        known = {
            name: RunEntry(epoch=s.epoch, node=s.node, incarnation=s.incarnation, state=state, endpoint=f"ipc://{name}")
            for name, s in self.plan.seats.items()
        }
        self.change(run={**self.state.run, **{n: r for n, r in known.items() if n not in self.state.run}})
        self.change(connected=dict.fromkeys(self.plan.nodes(), self.plan.revision))

    def say(self, name, **changes):
        self.change(run={**self.state.run, name: msgspec.structs.replace(self.state.run[name], **changes)})

    def report(self, name, *reports):
        self.say(name, reports=[*self.state.run[name].reports, *reports])

    def primary(self, executor="1.0"):
        return self.plan.records[executor].primary

    def standby(self, executor="1.0"):
        (name,) = self.plan.records[executor].standbys
        return name

    def complete(self, *executors):
        for executor in executors or self.plan.records:
            record = self.plan.records[executor]
            for standby in record.standbys:
                self.report(record.primary, Complete(record.epoch, standby))

    def protected(self):
        self.complete()
        self.write()
        return self

    def node(self, name):
        return self.plan.replicas[name].node


def kinds(decision):
    return [told.kind for told in decision.told]


@pytest.mark.parametrize("recovery", ["active", "passive"])
def test_the_first_plan_has_a_standby_of_the_class_on_another_node_for_every_executor(recovery):
    case = Case(recovery)
    plan = case.plan
    assert sorted(plan.records) == list(ALL)
    for executor, record in plan.records.items():
        (standby,) = record.standbys
        assert record.standbys[standby] is Mode(recovery)
        assert case.node(standby) != case.node(record.primary)
        assert executor_of(standby) == executor_of(record.primary) == executor
        assert record.degraded
        assert plan.executors[executor] == plan.replicas[record.primary]
    assert {s.epoch for s in plan.replicas.values()} == {Epoch(4, 1)}
    per_node = [sum(s.node == node for s in plan.replicas.values()) for node in "abc"]
    assert max(per_node) - min(per_node) <= 1
    assert plan.restore is None


def test_recovery_none_has_no_replicas():
    plan = Case("none").plan
    assert not plan.replicated
    assert not plan.replicas
    assert set(plan.seats) == set(ALL)


def test_with_a_single_node_there_is_no_standby_until_another_one_comes():
    case = Case(live={"a": LIVE["a"]})
    assert all(not record.standbys for record in case.plan.records.values())
    assert status(case.state) == "degraded"
    assert case.decide() == Nothing()
    case.live["b"] = LIVE["b"]
    decision = case.write()
    assert {case.node(case.standby(e)) for e in ALL} == {"b"}
    assert set(kinds(decision)) == {"standby.added"}


def test_only_the_primarys_word_about_the_present_record_protects():
    case = Case()
    record, standby = case.plan.records["1.0"], case.standby()
    case.report(record.primary, Complete((4, 1), standby))
    assert case.decide() == Nothing()
    case.report(standby, Complete(record.epoch, standby))
    assert case.decide() == Nothing()
    case.report(record.primary, Complete(record.epoch, standby))
    decision = case.write()
    assert case.plan.records["1.0"].protecting == {standby}
    assert kinds(decision) == ["standby.complete"]
    assert case.decide() == Nothing()
    assert status(case.state) == "degraded"
    case.complete("0.0", "0.1", "1.1")
    case.write()
    assert status(case.state) == "online"


def test_a_lost_primary_is_replaced_by_its_standby_and_gets_a_new_standby_on_another_node():
    case = Case().protected()
    old, standby, before = case.primary(), case.standby(), case.plan.records["1.0"]
    others = {e: r for e, r in case.plan.records.items() if e != "1.0"}
    case.say(old, state="lost", error="it was killed")
    decision = case.write()
    record = case.plan.records["1.0"]
    assert record.primary == standby
    assert record.since > before.epoch
    assert record.degraded
    assert case.plan.at_once == case.plan.revision
    assert record.standbys == {}
    assert kinds(case.write()) == ["standby.added"]
    assert case.plan.at_once < case.plan.revision
    assert case.node(case.standby()) != case.node(standby)
    assert old not in case.plan.replicas
    assert {e: r for e, r in case.plan.records.items() if e != "1.0"} == others
    assert case.plan.executors["1.0"] == case.plan.replicas[standby]
    assert "primary.lost" in kinds(decision)
    assert "executor.degraded" in kinds(decision)
    assert "it was killed" in decision.told[0].text
    assert case.plan.failures == []
    assert status(case.state) == "degraded"
    case.run()
    case.complete("1.0")
    case.write()
    assert status(case.state) == "online"


def test_a_node_that_is_gone_costs_every_executor_what_it_had_there():
    case = Case().protected()
    lost = sum(case.node(case.primary(executor)) == "b" for executor in ALL)
    del case.live["b"]
    case.settle()
    for record in case.plan.records.values():
        assert {case.node(name) for name in (record.primary, *record.standbys)} == {"a", "c"}
    assert case.plan.promotions == lost > 0


def test_a_node_that_came_back_as_another_incarnation_is_as_good_as_gone():
    case = Case().protected()
    seats = [name for name in case.plan.replicas if "@b/" in name]
    case.live["b"] = Lives(incarnation=2)
    case.settle()
    assert not set(seats) & set(case.plan.replicas)
    assert all(s.incarnation == 2 for s in case.plan.replicas.values() if s.node == "b")


def test_a_lost_standby_is_removed_at_once_and_replaced_after_a_pause():
    case = Case().protected()
    standby = case.standby()
    case.say(standby, state="lost", error="it was killed")
    decision = case.write()
    record = case.plan.records["1.0"]
    assert record.standbys == {}
    assert record.degraded
    assert case.plan.at_once == case.plan.revision
    assert kinds(decision) == ["standby.lost", "executor.degraded"]
    later = case.decide()
    assert isinstance(later, Later)
    case.now = later.at
    case.write()
    assert case.node(case.standby()) != case.node(record.primary)
    assert standby not in case.plan.replicas
    assert case.plan.at_once < case.plan.revision


def test_standbys_that_do_not_stay_are_tried_ever_more_slowly_and_elsewhere_but_never_end_the_model():
    case, pauses, nodes = Case().protected(), [], []
    for _ in range(6):
        nodes.append(case.node(case.standby()))
        case.say(case.standby(), state="failed", error="no such module", kind="ImportError", loading=True)
        case.write()
        later = case.decide()
        pauses.append(later.at - case.now)
        case.now = later.at
        case.write()
        case.run()
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5.0])
    assert set(nodes) == {"a", "b", "c"} - {case.node(case.primary())}


def test_a_silent_primary_is_replaced_and_a_silent_standby_removed():
    case = Case().protected()
    standby = case.standby()
    case.say(case.primary(), state="silent")
    case.settle()
    assert case.primary() == standby
    assert case.plan.silences == [case.now]
    case.complete("1.0")
    case.write()
    case.say(case.standby(), state="silent")
    case.write()
    assert case.plan.records["1.0"].standbys == {}


def test_a_silent_primary_without_a_protecting_standby_is_waited_for():
    case = Case()
    case.say(case.primary(), state="silent")
    assert case.decide() == Nothing()


def test_a_silent_standby_is_kept_while_its_primary_is_gone_or_silent_too():
    for state in ("lost", "silent"):
        case = Case().protected()
        case.say(case.primary(), state=state)
        case.say(case.standby(), state="silent")
        assert case.decide() == Nothing()
        standby = case.standby()
        case.say(standby, state="running")
        case.write()
        assert case.primary() == standby


def test_silence_that_comes_again_and_again_is_what_the_model_computes():
    case = Case().protected()
    for _ in range(SILENCES_ALLOWED):
        case.say(case.primary(), state="silent")
        case.settle()
        case.complete("1.0")
        case.write()
    case.say(case.primary(), state="silent")
    assert case.decide() == Nothing()
    case.say(case.primary(), state="lost")
    assert case.write().told[0].kind == "primary.lost"


def test_a_standby_that_diverged_protects_no_longer_until_it_is_complete_again():
    case = Case().protected()
    standby, record = case.standby(), case.plan.records["1.0"]
    case.report(standby, Diverged((4, 1), standby, 7))
    assert case.decide() == Nothing()
    case.report(standby, Diverged(record.epoch, standby, 7))
    decision = case.write()
    assert case.plan.records["1.0"].protecting == frozenset()
    assert kinds(decision) == ["standby.diverged", "executor.degraded"]
    assert case.decide() == Nothing()
    case.complete("1.0")
    case.write()
    assert case.plan.records["1.0"].protecting == {standby}


@pytest.mark.parametrize("how", ["both", "unprotected", "refused"])
def test_without_anybody_to_take_over_all_is_restored_from_the_last_checkpoint(how):
    case = Case("passive").protected()
    case.change(checkpoint=12)
    if how == "both":
        case.say(case.primary(), state="lost", error="killed")
        case.say(case.standby(), state="lost", error="killed")
    elif how == "unprotected":
        record = case.plan.records["1.0"]
        case.report(case.standby(), Diverged(record.epoch, case.standby(), 1))
        case.write()
        case.say(case.primary(), state="lost", error="killed")
    else:
        case.say(case.primary(), state="lost", error="killed")
        case.write()
        case.report(case.primary(), Refused(case.plan.records["1.0"].since, case.primary(), "it has no snapshot"))
    old = case.plan
    decision = case.write()
    new = case.plan
    assert new.restore == 12
    assert not set(new.replicas) & set(old.replicas)
    assert min(r.since for r in new.records.values()) > max(r.epoch for r in old.records.values())
    assert min(s.epoch for s in new.replicas.values()) > max(s.epoch for s in old.replicas.values())
    assert all(len(record.standbys) == 1 and record.degraded for record in new.records.values())
    assert kinds(decision)[0] == "model.restored"
    assert ("it has no snapshot" if how == "refused" else "killed") in decision.told[0].text
    assert {a.restarts for a in new.executors.values()} == {1}
    assert new.failures == [case.now]


def test_without_a_checkpoint_the_model_has_failed_and_says_why():
    case = Case().protected()
    case.say(case.primary(), state="lost", error="it was killed")
    case.say(case.standby(), state="lost")
    decision = case.decide()
    assert isinstance(decision, GiveUp)
    for part in ("1.0", "it was killed", "no durable checkpoint", "offline"):
        assert part in decision.error


def test_what_has_not_begun_yet_needs_no_checkpoint():
    case = Case()
    case.change(run={}, connected={"a": 1})
    case.run("loaded")
    case.change(connected={"a": 1})
    case.say(case.primary(), state="lost", error="killed")
    case.write()
    assert case.plan.restore is None
    assert case.plan.restores == 1


def test_a_cluster_that_was_down_as_a_whole_restores_and_is_not_blamed():
    case = Case().protected()
    case.change(checkpoint=3)
    case.live = {name: Lives(incarnation=2) for name in "abc"}
    case.write()
    assert case.plan.restore == 3
    assert case.plan.failures == []


def test_restoring_again_and_again_ends_in_failure():
    case = Case()
    case.change(checkpoint=1)
    for _ in range(FAILURES_ALLOWED):
        case.run()
        case.say(case.primary(), state="lost", error="segmentation fault")
        decision = case.decide()
        if isinstance(decision, Later):
            case.now = decision.at
        case.write()
    case.run()
    case.say(case.primary(), state="lost", error="segmentation fault")
    decision = case.decide()
    assert isinstance(decision, GiveUp)
    assert "segmentation fault" in decision.error


def test_an_error_of_the_author_is_not_met_again_by_a_standby():
    case = Case().protected()
    case.say(case.primary(), state="failed", error="division by zero", kind="StepError")
    assert case.decide() == GiveUp("division by zero")


def test_a_first_plan_begins_with_the_checkpoint_that_there_is():
    case = Case()
    case.change(plan=None, run={}, checkpoint=8)
    case.write()
    assert case.plan.restore == 8


def test_what_dead_nodes_said_is_swept():
    case = Case().protected()
    del case.live["b"]
    decision = case.settle()
    stale = {name for name in case.state.run if "@b/" in name}
    assert isinstance(decision, Sweep)
    assert set(decision.executors) == stale


def test_the_latest_epoch_of_a_plan_is_that_of_its_records():
    case = Case().protected()
    before = case.plan.latest
    case.term = 9
    case.say(case.primary(), state="lost")
    case.write()
    assert case.plan.latest > before
    assert case.plan.latest.term == 9
