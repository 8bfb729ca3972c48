"""Live updates, step by step: shadows, hand-overs, the trial, and every way back."""

from __future__ import annotations

import msgspec
import pytest
from tests.cluster.test_succession import ALL, LIVE, kinds
from tests.cluster.update_scene import REVISION, Update

from penstock.cluster import orders, upgrading
from penstock.cluster.checkpointing import ready
from penstock.cluster.converge import converge
from penstock.cluster.decisions import DropPlan, GiveUp, Later, Nothing
from penstock.cluster.hosting import Here, LoadModel
from penstock.cluster.plan import Move
from penstock.cluster.presentation import executor_views, update_view
from penstock.cluster.upgrading import LOSSES_ALLOWED, PATIENCE, SHADOW, TRIAL
from penstock.exchange.replica.assignment import Mode
from penstock.exchange.replica.messages import Caught, Refused
from penstock.settings import RunSettings

# ---- the way that it goes --------------------------------------------------------------------------------------------


def test_every_executor_gets_a_shadow_of_the_new_version_beside_its_primary():
    case = Update().asked()
    before = case.plan.records
    decision = case.write()
    assert kinds(decision) == ["model.updating"]
    for executor in ALL:
        record = case.plan.records[executor]
        shadow = case.shadow(executor)
        assert record.standbys[shadow] is Mode.ACTIVE
        assert case.node(shadow) == case.node(record.primary)
        assert case.plan.replicas[shadow].of == REVISION
        assert record.primary == before[executor].primary
        assert record.protecting == before[executor].protecting
        assert record.standbys.keys() - {shadow} == before[executor].standbys.keys()
    assert (case.plan.digest, case.plan.version) == ("d1", "1")
    assert (case.upgrade.digest, case.upgrade.version, case.upgrade.begun) == ("d2", "2", case.now)
    assert case.decide() == Nothing()


def test_shadows_are_loaded_with_the_new_package_and_configuration_and_told_what_they_migrate_from():
    case = Update().asked(config={"n": 2})
    case.write()
    name = case.shadow()
    load = orders.load(case.plan, [name], case.plan.replicas[name].epoch, "target", RunSettings(), 1.0)
    assert load.config == {"n": 2}
    assert load.replicas["1.0"].migrate_from == "1"
    assert orders.package(case.plan, [name]) == "d2"
    old = case.standby_of("1.0")
    assert orders.package(case.plan, [old]) == "d1"
    assert orders.load(case.plan, [old], case.plan.replicas[old].epoch, "t", RunSettings(), 1.0).config == {}
    assert orders.packages(case.plan) == [(False, "d1"), (True, "d2")]


def test_state_is_not_migrated_when_only_the_configuration_is_another_one():
    case = Update().asked("d1", "1", config={"n": 2})
    case.write()
    name = case.shadow()
    load = orders.load(case.plan, [name], case.plan.replicas[name].epoch, "target", RunSettings(), 1.0)
    assert load.config == {"n": 2}
    assert load.replicas["1.0"].migrate_from is None


def test_old_and_new_replicas_of_one_node_are_loaded_in_different_workers_with_their_own_environments():
    case = Update().asked()
    case.write()
    node = case.node(case.primary())
    homes = {("g/m", False): ("g", "e1"), ("g/m", True): ("g", "e2")}
    here = Here(node, 1, [], {7: ("g", "e1"), 8: ("g", "e2")}, homes)
    loads = [action for action in converge(here, {"g/m": case.state}) if isinstance(action, LoadModel)]
    by_worker = {load.worker: {case.plan.replicas[name].of for name in load.executors} for load in loads}
    assert by_worker == {7: {0}, 8: {REVISION}}


def test_the_new_version_takes_over_from_the_sinks_up_and_then_is_the_models():
    case = Update().shadowed()
    case.write()
    assert set(case.plan.handovers) == {"1.0", "1.1"}
    assert case.upgrade.ordered
    assert case.decide() == Nothing()
    decision = case.handed("1.0")
    assert kinds(decision)[0] == "executor.updated"
    assert case.new() == ["1.0"]
    case.handed("1.1")
    assert case.new() == ["1.0", "1.1"]
    case.standbys()
    assert set(case.plan.handovers) == {"0.0", "0.1"}
    case.handed("0.0", "0.1")
    assert case.new() == list(ALL)
    while not case.upgrade.done:
        case.write()
    case.run()
    case.complete()
    case.write()
    assert {s.of for s in case.plan.replicas.values()} == {REVISION}
    assert case.decide() == Later(case.upgrade.done + TRIAL)
    case.now = case.upgrade.done + TRIAL
    case.write()
    assert case.upgrade.proved
    assert case.decide() == Nothing()
    case.durable(6, of=REVISION)
    decision = case.write()
    assert kinds(decision) == ["model.updated_live"]
    plan = case.plan
    assert (plan.digest, plan.version, plan.of, plan.upgrade) == ("d2", "2", REVISION, None)
    assert case.decide() == Nothing()
    assert (plan.promotions, plan.restores, plan.failures) == (0, 0, [])


def test_a_later_update_begins_with_the_version_that_runs():
    case = Update().proved()
    case.durable(6, of=REVISION)
    case.write()
    case.asked("d3", "3", revision=11)
    case.write()
    name = case.shadow()
    assert case.plan.replicas[name].of == 11
    load = orders.load(case.plan, [name], case.plan.replicas[name].epoch, "target", RunSettings(), 1.0)
    assert load.replicas["1.0"].migrate_from == "2"
    assert case.new() == []


def test_checkpoints_are_taken_until_the_first_hand_over_and_again_after_the_trial():
    case = Update().shadowed()
    case.run()
    assert ready(case.state)
    case.write()
    case.run()
    assert not ready(case.state)
    case = Update().on_trial()
    case.run()
    assert not ready(case.state)
    case.now = case.upgrade.done + TRIAL
    case.write()
    case.run()
    assert ready(case.state)
    assert case.plan.durable_of == REVISION


def test_nobody_is_handed_over_before_there_is_a_checkpoint_to_go_back_to():
    case = Update()
    case.change(checkpoint=None, durable=None)
    case.shadowed()
    assert isinstance(case.decide(), Later)
    case.durable(1)
    case.write()
    assert case.upgrade.ordered


def test_shadows_have_to_compute_before_time_begins_to_count():
    case = Update().asked()
    case.write()
    case.run("loaded")
    case.now += 10
    assert case.decide() == Nothing()
    case.say(case.shadow("0.0"), state="running")
    assert case.decide() == Nothing()
    for name in case.shadows():
        case.say(name, state="running")
    case.write()
    assert case.upgrade.shadowed == case.now


def test_a_word_of_an_earlier_primary_hands_nothing_over():
    case = Update().ordered()
    case.report(case.shadow(), Caught((1, 1), case.shadow(), 7))
    assert case.decide() == Nothing()


# ---- moves -----------------------------------------------------------------------------------------------------------


def move(case, to, executor="1.0"):
    wish = Move(to=to, generation=case.plan.generation, asked=case.now, deadline=case.now + 60)
    case.change(moves={**case.state.moves, executor: wish})


def test_a_move_that_is_under_way_comes_to_its_end_first():
    case = Update()
    standby = case.standby()
    move(case, case.node(standby))
    case.write()
    assert case.plan.handovers == {"1.0": standby}
    case.asked()
    assert case.decide() == Nothing()
    case.report(standby, Caught(case.plan.records["1.0"].since, standby, 99))
    case.write()
    assert case.primary() == standby
    assert case.plan.upgrade is None
    case.write()
    assert case.upgrade.revision == REVISION


def test_a_move_that_is_wanted_during_an_update_is_refused():
    case = Update().ordered()
    before = case.plan.records
    move(case, "c")
    decision = case.write()
    assert kinds(decision) == ["move.failed"]
    assert "being updated" in decision.told[0].text
    assert (case.plan.records, case.state.moves) == (before, {})
    assert set(case.plan.handovers) == {"1.0", "1.1"}


# ---- losses on the way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["shadowed", "ordered", "caught"])
def test_an_old_primary_that_dies_is_replaced_by_its_own_standby_and_gets_another_shadow(how):
    case = Update().shadowed() if how == "shadowed" else Update().ordered()
    if how == "caught":
        case.caught("1.0")
    old, standby, shadow = case.primary(), case.standby_of("1.0"), case.shadow()
    case.say(old, state="lost")
    decision = case.write()
    assert "primary.lost" in kinds(decision)
    assert case.primary() == standby
    assert shadow not in case.plan.replicas
    assert case.plan.promotions == 1
    while not case.plan.records["1.0"].foreign:
        case.write()
    again = case.shadow()
    assert case.node(again) == case.node(standby)
    case.run()
    case.complete()
    case.settle_handovers()
    assert case.new() == list(ALL)
    assert case.plan.restores == 0


def test_an_old_primary_that_dies_unprotected_makes_all_begin_again_with_the_old_version_and_the_update_too():
    case = Update("passive", {"a": LIVE["a"]})
    case.change(checkpoint=5)
    case.shadowed()
    case.say(case.primary(), state="lost")
    decision = case.write()
    assert "model.restored" in kinds(decision)
    assert (case.plan.digest, case.plan.restore, case.plan.upgrade) == ("d1", 5, None)
    assert {s.of for s in case.plan.replicas.values()} == {0}
    case.run()
    case.write()
    assert case.upgrade.revision == REVISION


def test_a_shadow_whose_worker_dies_is_made_anew_after_a_little_while_and_computes_for_the_whole_time():
    case = Update().shadowed()
    first = case.shadow()
    case.say(first, state="lost", error="killed by SIGKILL")
    decision = case.write()
    assert "new version of 1.0" in decision.told[0].text
    assert case.plan.records["1.0"].protecting
    assert case.plan.setbacks == {}
    assert case.upgrade.losses == [case.now]
    assert not case.upgrade.shadowed
    later = case.decide()
    assert isinstance(later, Later)
    case.now = later.at
    case.write()
    assert case.shadow() != first
    case.run()
    case.write()
    assert case.decide() == Later(case.now + SHADOW)


def test_shadows_that_die_again_and_again_change_nothing():
    case = Update().asked()
    case.write()
    case.run()
    records = {executor: record.primary for executor, record in case.plan.records.items()}
    for _ in range(50):
        decision = case.decide()
        if isinstance(decision, Later):
            case.now = decision.at
            continue
        case.write()
        if case.plan.upgrade is None:
            break
        case.run()
        for name in case.shadows():
            case.say(name, state="lost", error="out of memory")
    assert case.plan.failed_upgrade.revision == REVISION
    assert f"{LOSSES_ALLOWED + 1} times" in case.plan.failed_upgrade.error
    assert "out of memory" in case.plan.failed_upgrade.error
    assert {executor: record.primary for executor, record in case.plan.records.items()} == records
    assert not case.shadows()


def test_shadows_that_go_with_their_node_are_no_reason_to_give_up():
    case = Update().shadowed()
    del case.live[case.node(case.primary())]
    case.write()
    assert case.upgrade.losses == []
    case.run()
    case.complete()
    case.settle_handovers()
    assert case.new() == list(ALL)


def test_a_new_primary_that_dies_is_replaced_by_its_standby():
    case = Update().on_trial()
    standby = case.standby()
    case.say(case.primary(), state="lost")
    case.write()
    assert case.primary() == standby
    assert case.new() == list(ALL)
    assert case.upgrade.done


@pytest.mark.parametrize("node", [True, False])
def test_a_new_primary_that_dies_before_it_is_protected_takes_the_model_back(node):
    """If its node went the version is not to blame, and the update begins anew."""
    case = Update().ordered()
    case.handed("1.0")
    lost = case.primary()
    if node:
        gone = case.node(lost)
        del case.live[gone]
    else:
        case.say(lost, state="lost", error="killed by SIGKILL")
    decision = case.write()
    assert "model.restored" in kinds(decision)
    assert (case.plan.digest, case.plan.restore, case.plan.upgrade) == ("d1", 5, None)
    assert {s.of for s in case.plan.replicas.values()} == {0}
    assert case.plan.failures == []
    assert ("model.update_failed" in kinds(decision)) is not node
    case.run()
    if node:
        case.write()
        assert case.upgrade.revision == REVISION
    else:
        assert "SIGKILL" in case.plan.failed_upgrade.error
        case.complete()
        case.write()
        assert case.decide() == Nothing()


def test_a_new_version_that_refuses_to_take_over_takes_the_model_back():
    case = Update().ordered()
    case.handed("1.0")
    record = case.plan.records["1.0"]
    case.report(record.primary, Refused(record.epoch, record.primary, "it has no complete snapshot"))
    case.write()
    assert (case.plan.digest, case.plan.restore) == ("d1", 5)
    assert "no complete snapshot" in case.plan.failed_upgrade.error


# ---- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [False, True])
def test_a_version_that_fails_beside_the_other_changes_nothing(ordered):
    case = Update().ordered() if ordered else Update().shadowed()
    old = {executor: record.primary for executor, record in case.plan.records.items()}
    case.fail(case.shadow())
    decision = case.write()
    assert kinds(decision) == ["model.update_failed"]
    assert not case.shadows()
    assert case.plan.handovers == {}
    assert case.plan.at_once == case.plan.revision
    assert {executor: record.primary for executor, record in case.plan.records.items()} == old
    assert all(record.protecting for record in case.plan.records.values())
    assert (case.plan.restores, case.plan.promotions, case.plan.upgrade) == (0, 0, None)
    assert case.plan.failed_upgrade == upgrading.FailedUpgrade(REVISION, "KeyError: 'x'")
    assert case.decide() == Nothing()
    case.run()
    assert ready(case.state)
    case.asked("d1", "1", revision=10)  # the catalogue goes back
    assert case.decide() == Nothing()
    case.asked("d2", "2", revision=11)  # somebody tries again
    case.write()
    assert case.upgrade.revision == 11


def test_a_version_that_cannot_be_loaded_changes_nothing():
    case = Update().asked()
    case.write()
    case.run()
    case.say(case.shadow("0.1"), state="failed", error="no module named x", kind="ImportError", loading=True)
    case.write()
    assert case.plan.failed_upgrade.error == "no module named x"
    assert case.plan.restores == 0


@pytest.mark.parametrize("when", ["first", "half", "trial", "proved"])
def test_a_version_that_fails_after_it_took_over_brings_the_old_one_back_from_the_last_checkpoint(when):
    case = Update()
    if when in ("first", "half"):
        case.ordered()
        case.handed("1.0")
        if when == "half":
            case.handed("1.1")
            case.standbys()
            case.handed("0.0")
    elif when == "trial":
        case.on_trial()
    else:
        case.proved()
    case.fail(case.primary())
    decision = case.write()
    assert kinds(decision)[:2] == ["model.update_failed", "model.restored"]
    plan = case.plan
    assert (plan.digest, plan.version, plan.of, plan.restore, plan.restores) == ("d1", "1", 0, 5, 1)
    assert plan.upgrade is None
    assert plan.failed_upgrade.revision == REVISION
    assert {s.of for s in plan.replicas.values()} == {0}
    assert not any(record.foreign for record in plan.records.values())
    assert plan.handovers == {}
    assert plan.failures == []
    case.run()
    case.complete()
    case.write()
    case.run()
    assert case.decide() == Nothing()
    assert ready(case.state)


def test_a_standby_of_the_new_version_that_fails_is_a_failure_of_the_version():
    case = Update().on_trial()
    case.fail(case.standby())
    case.write()
    assert case.plan.digest == "d1"
    assert case.plan.restores == 1


def test_once_its_state_is_durable_a_failure_is_the_models():
    case = Update().proved()
    case.durable(6, of=REVISION)
    case.fail(case.primary())
    case.write()
    assert case.plan.digest == "d2"
    assert case.decide() == GiveUp("KeyError: 'x'")


def test_what_is_lost_after_that_is_restored_with_the_new_version():
    case = Update().proved()
    case.durable(6, of=REVISION)
    for name in (case.primary(), case.standby()):
        case.say(name, state="lost")
    case.write()
    case.write()
    assert (case.plan.digest, case.plan.restore, case.plan.restores) == ("d2", 6, 1)


def test_no_checkpoint_is_restored_with_another_version_than_it_was_taken_by():
    case = Update().proved()
    case.durable(6, of=REVISION)
    case.write()
    case.durable(5)  # the later one was damaged, and somebody has removed it
    for name in (case.primary(), case.standby()):
        case.say(name, state="lost")
    decision = case.decide()
    assert isinstance(decision, GiveUp)
    assert "another version" in decision.error


@pytest.mark.parametrize("handed", [False, True])
def test_an_update_that_takes_too_long_is_given_up(handed):
    case = Update().ordered()
    if handed:
        case.handed("1.0")
    case.now = case.upgrade.begun + PATIENCE + 1
    case.write()
    assert "within" in case.plan.failed_upgrade.error
    assert (case.plan.digest, case.plan.restores) == ("d1", int(handed))


@pytest.mark.parametrize("handed", [False, True])
def test_an_update_is_called_off_by_going_back_to_the_version_that_runs(handed):
    case = Update().ordered()
    if handed:
        case.handed("1.0")
    case.asked("d1", "1", revision=10)
    case.write()
    assert case.plan.failed_upgrade == upgrading.FailedUpgrade(REVISION, "it was called off")
    assert (case.plan.digest, case.plan.restores, case.plan.upgrade) == ("d1", int(handed), None)
    assert not case.shadows()


def test_a_model_that_is_taken_offline_in_the_middle_is_gone():
    case = Update().ordered()
    case.change(entry=msgspec.structs.replace(case.state.entry, desired="offline"))
    assert case.decide() == DropPlan()


def test_a_new_leader_goes_on_where_the_former_one_was():
    case = Update().ordered()
    case.term = 9
    case.handed("1.0", "1.1")
    assert case.new() == ["1.0", "1.1"]
    assert all(case.plan.records[e].since[0] == 9 for e in case.new())
    case.standbys()
    case.handed("0.0", "0.1")
    assert case.new() == list(ALL)


def test_an_old_version_that_fails_by_itself_is_as_without_an_update():
    case = Update().shadowed()
    case.fail(case.primary(), "its own error")
    assert case.decide() == GiveUp("its own error")


def test_an_update_is_shown_as_far_as_it_is():
    case = Update().asked()
    phases = [update_view(case.state).phase]
    case.write()
    phases.append(update_view(case.state).phase)
    assert [replica.role for e in executor_views(case.state, {}) for replica in e.replicas].count("shadow") == 4
    for reach in ("shadowed", "ordered", "on_trial", "proved"):
        case = getattr(Update(), reach)()
        view = update_view(case.state)
        assert (view.version, view.generation, view.executors) == ("2", REVISION, len(case.new()))
        phases.append(view.phase)
    assert phases == ["starting", "starting", "shadow", "handing over", "trial", "settling"]
    case.fail(case.primary())
    case.write()
    failed = update_view(case.state)
    assert (failed.phase, failed.generation, failed.error) == ("failed", REVISION, "KeyError: 'x'")
    assert update_view(Update().state) is None
