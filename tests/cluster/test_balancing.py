"""What placement strategies are told of a running cluster, and what becomes of their answers."""

from __future__ import annotations

import msgspec
import pytest
from tests.cluster.scenes import GIB, member, model, reported, view

from penstock.cluster.balancer import Balancer
from penstock.cluster.balancing import question, scene_of, weigh
from penstock.cluster.measuring import measured
from penstock.errors import UsageError
from penstock.placement import registry
from penstock.placement.balance import Blocked, Transfer
from penstock.placement.decide import History
from penstock.placement.plan import ExecutorKey, NodeCapacity, Traffic
from penstock.settings import Balancing

SETTINGS = Balancing(alpha=None)
WORDS = "default/words"
CROSSED = {"0.0": "a", "0.1": "b", "1.0": "b", "1.1": "a"}
"""Two producers, each with its favourite consumer on the other node."""
FLOWS = {
    (WORDS, "0.0", "1.0"): 1e6, (WORDS, "0.1", "1.1"): 1e6, (WORDS, "0.0", "1.1"): 1e4, (WORDS, "0.1", "1.0"): 1e4,
}  # fmt: skip


def key(executor, model=WORDS):
    stage, _, index = executor.partition(".")
    return ExecutorKey(model, int(stage), int(index))


def scene(seen, flows=FLOWS, settings=SETTINGS, **measurements):
    found = measured(seen, reported(seen, flows, **measurements))
    return scene_of(seen, found.load, found.traffic, settings)


def crossed(**changes):
    return view(model(WORDS, CROSSED, **changes))


def test_a_scene_has_executors_capacities_loads_and_traffic():
    made = scene(crossed(), cpu={(WORDS, "1.0"): 0.25}, keys_bytes=5000)
    assert {str(k): s.node for k, s in made.current.workers.items()} == {
        f"{WORDS}:{executor}": node for executor, node in CROSSED.items()
    }
    assert made.nodes["a"] == NodeCapacity("a", cpus=4.0, memory=8 * GIB)
    assert made.load[key("1.0")].cpu == 0.25
    assert made.load[key("1.0")].state == 5000
    assert made.traffic[key("0.0"), key("1.0")] == Traffic(1e4, 1e6)
    assert len(made.links) == 4
    assert (made.stuck, made.lossy) == ({}, {})


def test_a_replica_that_is_gone_says_nothing():
    seen = crossed()
    parts = reported(seen, FLOWS, cpu={(WORDS, "1.0"): 0.5})
    parts["a"].executors[WORDS].append(msgspec.structs.replace(parts["b"].executors[WORDS][1], cpu=99.0))
    parts["a"].channels[WORDS].append(
        msgspec.structs.replace(parts["b"].channels[WORDS][0], byte_rate=1e9)
    )  # of 0.1, which runs on b
    found = measured(seen, parts)
    assert found.load[key("1.0")].cpu == 0.5
    assert found.traffic[key("0.1"), key("1.1")].bytes == 1e6


def test_favourites_come_together_and_the_answer_says_what_that_gives():
    answer = weigh(scene(crossed()), SETTINGS, 0.0)
    (part,) = answer.parts
    assert part.verdict.apply
    assert part.verdict.explanation.before.share == pytest.approx(1.0, abs=0.02)
    assert answer.whole.after.share < 0.02
    assert 0 < len(answer.moves) <= 4
    workers = answer.placement.workers
    assert workers[key("0.0")] == workers[key("1.0")]
    assert workers[key("0.1")] == workers[key("1.1")]


def test_the_worker_is_the_bound_not_the_machine():
    """Four cores, but all executors of a group are in one loop per node: 0.5 cores each do not fit together."""
    busy = {(WORDS, executor): 0.35 for executor in CROSSED}
    answer = weigh(scene(crossed(), cpu=busy), SETTINGS, 0.0)
    per_node = [sum(slot.node == node for slot in answer.placement.workers.values()) for node in "ab"]
    assert per_node == [2, 2]
    assert answer.whole.after.share < 0.02


def test_a_saturated_executor_is_no_reason_to_refuse_everything():
    busy = dict.fromkeys(((WORDS, executor) for executor in CROSSED), 0.1) | {(WORDS, "1.0"): 1.0}
    answer = weigh(scene(crossed(), cpu=busy), SETTINGS, 0.0)
    assert not answer.faults
    assert answer.placement.on(answer.placement.workers[key("1.0")]) == (key("1.0"),)


def test_the_reasons_why_executors_stay():
    seen = view(
        model("default/none", {"0.0": "a"}, recovery="none", stages=1),
        model("default/starting", {"0.0": "a"}, state="loaded", stages=1),
        model("default/ended", {"0.0": "a"}, state="finished", stages=1),
        model("default/locked", {"0.0": "a"}, lock="op-1", stages=1),
        model("default/free", {"0.0": "a"}, stages=1),
        model("default/off", {"0.0": "a"}, stages=1, desired="offline"),
    )
    found = scene_of(seen, {}, {}, SETTINGS, moving={key("0.0", "default/free")})
    assert {k.model: found.without(k) for k in found.current.workers} == {
        "default/none": "a move would lose its state: the model runs with recovery none",
        "default/starting": "it does not run yet",
        "default/ended": "it has finished",
        "default/locked": "an operation is changing the model",
        "default/free": "it is being moved",
    }


def test_what_would_lose_something_moves_in_thought_alone():
    made = scene(crossed(recovery="none"))
    assert weigh(made, SETTINGS, 0.0).moves == ()
    assert weigh(made, SETTINGS, 0.0, lossy=True).moves
    assert weigh(made, SETTINGS, 0.0).parts[0].verdict.reason == "the running plan stays: nothing would move"


def test_only_the_model_that_was_named_moves():
    other = "default/other"
    seen = view(model(WORDS, CROSSED), model(other, CROSSED))
    flows = FLOWS | {(other, producer, consumer): volume for (_, producer, consumer), volume in FLOWS.items()}
    made = scene(seen, flows)
    assert {move.executor.model for move in weigh(made, SETTINGS, 0.0).moves} == {WORDS, other}
    assert {move.executor.model for move in weigh(made, SETTINGS, 0.0, model=other).moves} == {other}


def test_a_small_model_is_judged_by_its_own_traffic():
    """What it saves is little of all that flows, and nearly all of its own."""
    huge = "default/huge"
    flows = {(WORDS, p, c): volume for (_, p, c), volume in FLOWS.items()} | {(huge, "0.0", "1.0"): 1e9}
    seen = view(model(WORDS, CROSSED), model(huge, {"0.0": "a", "1.0": "b"}, recovery="none"))
    answer = weigh(scene(seen, flows), SETTINGS, 0.0)
    assert {part.model for part in answer.parts if part.verdict.apply} == {WORDS}
    assert answer.whole.before.share - answer.whole.after.share < SETTINGS.threshold


ROUND = {"0.0": "a", "0.1": "b", "1.0": "c", "1.1": "a", "2.0": "b", "2.1": "c"}


def threaded(name, volume=1e6):
    """All flows from 0.0 to 1.0 to 2.0."""
    return {(name, "0.0", "1.0"): volume, (name, "1.0", "2.0"): volume}


def test_models_may_need_the_room_that_others_make():
    """At most 6 of 12 executors may be on a node: both models together keep that, where one alone would not."""
    settings = Balancing(alpha=0.0)
    other = "default/other"
    flows = threaded(WORDS) | threaded(other)
    seen = view(model(WORDS, ROUND, stages=3), model(other, ROUND, stages=3), members=("a", "b", "c"))
    answer = weigh(scene(seen, flows, settings), settings, 0.0)
    assert [part.verdict.apply for part in answer.parts] == [True, True]
    assert answer.whole.after.share == 0.0
    counts = [sum(slot.node == node for slot in answer.placement.workers.values()) for node in "abc"]
    assert counts == [4, 4, 4]


def test_what_is_not_worth_it_for_one_model_is_not_in_the_way_of_another():
    """The other model was changed a moment ago, so it stays, and the strategy has to do without its moves."""
    settings = Balancing(alpha=0.0)
    other = "default/other"
    seen = view(model(WORDS, ROUND, stages=3), model(other, ROUND, stages=3), members=("a", "b", "c"))
    made = scene(seen, threaded(WORDS) | threaded(other), settings)
    answer = weigh(made, settings, 10.0, history={other: History(changed=5.0)})
    applied = {part.model: part.verdict.apply for part in answer.parts}
    assert applied == {WORDS: True, other: False}
    assert {move.executor.model for move in answer.moves} == {WORDS}
    counts = [sum(slot.node == node for slot in answer.placement.workers.values()) for node in "abc"]
    assert counts == [4, 4, 4]


def test_what_other_groups_use_is_not_to_be_had():
    other = "batch/other"
    seen = view(model(WORDS, CROSSED), model(other, {"0.0": "a"}, stages=1), members=(member("a"), member("b")))
    made = scene(seen, cpu={(other, "0.0"): 3.0})
    problem = question(made, "default", made.current, SETTINGS)
    assert problem.nodes["a"].cpus == pytest.approx(4 - 3 / 0.9)
    assert problem.nodes["b"].cpus == 4
    assert {k.model for k in problem.executors} == {WORDS}
    used_up = question(scene(seen, cpu={(other, "0.0"): 4.0}), "default", made.current, SETTINGS)
    assert 0 < used_up.nodes["a"].cpus < 0.01


def test_standbys_are_load_on_their_nodes_and_follow_their_primaries():
    """The primary may go where its standby is: the standby takes over there, and another one is made."""
    state = model(WORDS, CROSSED, recovery="active", standbys={"1.0": "a", "1.1": "b"})
    seen = view(state)
    parts = reported(seen, FLOWS, cpu={(WORDS, "1.0"): 0.25})
    parts["a"].executors[WORDS].append(msgspec.structs.replace(parts["b"].executors[WORDS][1], cpu=0.125))
    found = measured(seen, parts)
    assert found.load[key("1.0")].cpu == 0.25
    assert {node: vector.cpu for node, vector in found.standbys.items()} == {"a": 0.125}
    assert found.nodes["a"].cpu == 0.125
    assert found.workers == {("a", "default"): 0.125, ("b", "default"): 0.25}
    made = scene_of(seen, found.load, found.traffic, SETTINGS, standbys=found.standbys)
    assert question(made, "default", made.current, SETTINGS).nodes["a"].cpus == pytest.approx(4 - 0.125 / 0.9)
    assert len(weigh(made, SETTINGS, 0.0).moves) == 2


def test_executors_of_dead_nodes_are_left_to_those_who_start_them_again():
    seen = view(model(WORDS, CROSSED), members=("a", member("b", live=False)))
    made = scene(seen)
    assert set(made.nodes) == {"a"}
    assert set(made.current.workers) == {key("0.0"), key("1.1")}
    assert weigh(made, SETTINGS, 0.0).moves == ()


def test_without_a_live_node_there_is_nothing_to_place_on():
    with pytest.raises(UsageError, match="no node is live"):
        scene(view(model(WORDS, CROSSED), members=(member("a", live=False),)))


def test_without_models_nothing_moves():
    answer = weigh(scene(view(), {}), SETTINGS, 0.0)
    assert (answer.moves, answer.parts, answer.blocked, answer.faults) == ((), (), (), {})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"alpha": 2.0}, "alpha"), ({"beta": 0.0}, "beta"), ({"gamma": -1.0}, "gamma"), ({"delta": 0}, "delta"),
        ({"fill": 1.5}, "fill"), ({"threshold": 7.0}, "threshold"), ({"horizon": 0.0}, "horizon"),
        ({"initial": "adaptive"}, "even or offline"),
        ({"half_life": 50.0}, "half_life"), ({"strategy": "best"}, "adaptive, balance, even"),
    ],
)  # fmt: skip
def test_impossible_settings_are_named(changes, named):
    with pytest.raises(UsageError, match=named):
        Balancer(Balancing(**changes)).asked(0.0, scene(crossed(), settings=Balancing()))


def test_limits_that_cannot_be_kept_leave_the_plan_and_are_named():
    tight = Balancing(fill=0.01)
    memory = 4 * GIB
    answer = weigh(scene(crossed(), settings=tight, memory=memory), tight, 0.0)
    assert "limit memory" in str(answer.faults["default"])
    assert answer.placement == answer.scene.current


def test_a_strategy_that_raises_leaves_the_plan(monkeypatch):
    def broken(problem):
        raise ZeroDivisionError("oops")

    monkeypatch.setitem(registry.STRATEGIES, "broken", broken)
    answer = weigh(scene(crossed()), SETTINGS, 0.0, strategy="broken")
    assert "placement strategy 'broken' failed: ZeroDivisionError: oops" in str(answer.faults["default"])
    assert answer.placement == answer.scene.current
    assert answer.moves == ()


# ---- the balancer: over time ----------------------------------------------------------------------------------------


def observed(balancer, seen, times, flows=FLOWS, **measurements):
    for at in times:
        balancer.observe(float(at), seen, reported(seen, flows, **measurements))


def with_fixed_sources(homes):
    """Only the consumers of `words` can move."""
    state = model(WORDS, homes)
    for seat in state.plan.replicas:
        if seat.startswith("0."):
            state.run[seat] = msgspec.structs.replace(state.run[seat], state="finished")
    return view(state)


def test_the_interval_and_the_guard_hold_after_a_move():
    balancer = Balancer(Balancing(alpha=None, interval=30.0, guard=300.0))
    before, after = with_fixed_sources(CROSSED), with_fixed_sources({**CROSSED, "1.0": "a", "1.1": "b"})
    observed(balancer, before, range(10))
    assert len(balancer.due(9.0, balancer.scene(9.0, before)).moves) == 2
    observed(balancer, after, range(10, 20))
    assert balancer.recent(19.0) == {key("1.0"), key("1.1")}
    assert not balancer.due(19.0, balancer.scene(19.0, after)).moves  # all is well
    turned = {(WORDS, "0.0", "1.1"): 1e6, (WORDS, "0.1", "1.0"): 1e6}
    observed(balancer, after, range(20, 60), turned)
    scene = balancer.scene(59.0, after)
    assert "less than 30 s" in balancer.due(39.0, scene).parts[0].verdict.reason
    assert "less than 300 s ago" in balancer.due(59.0, scene).parts[0].verdict.reason
    assert balancer.due(59.0, scene).moves == ()
    assert len(balancer.due(400.0, scene).moves) == 2


def test_somebody_who_asks_does_not_wait_for_the_interval():
    balancer = Balancer(Balancing(alpha=None, guard=0.0))
    straight = view(model(WORDS, {**CROSSED, "1.0": "a", "1.1": "b"}))
    observed(balancer, straight, range(5))
    observed(balancer, crossed(), range(5, 30))
    scene = balancer.scene(29.0, crossed())
    assert not balancer.due(29.0, scene).moves
    assert balancer.asked(29.0, scene).moves


def test_what_a_dead_node_takes_with_it_is_no_move():
    balancer = Balancer(SETTINGS)
    observed(balancer, crossed(), [0])
    after = view(model(WORDS, dict.fromkeys(CROSSED, "a")), members=("a", member("b", live=False)))
    observed(balancer, after, [1])
    assert balancer.recent(1.0) == frozenset()


def test_traffic_that_stops_is_forgotten():
    balancer = Balancer(SETTINGS)
    observed(balancer, crossed(), range(10))
    observed(balancer, crossed(), range(10, 50), {})
    assert balancer.scene(49.0, crossed()).traffic == {}


# ---- relief of an overloaded node -----------------------------------------------------------------------------------


def test_an_overloaded_node_gives_its_greatest_user_away():
    heavy = {"0.0": "a", "1.0": "a", "1.1": "a"}
    balancer = Balancer(SETTINGS)
    seen = view(model(WORDS, heavy))
    observed(balancer, seen, [0], {}, cpu={(WORDS, "0.0"): 0.3, (WORDS, "1.0"): 0.5, (WORDS, "1.1"): 0.2})
    step = balancer.relieved(0.0, balancer.scene(0.0, seen))
    assert isinstance(step, Transfer)
    assert (step.executor, step.target.node, step.resource) == (key("1.0"), "b", "worker")


def test_an_executor_that_was_moved_lately_is_not_moved_again():
    heavy = {"0.0": "a", "1.0": "a", "1.1": "a"}
    cpu = {(WORDS, "0.0"): 0.3, (WORDS, "1.0"): 0.5, (WORDS, "1.1"): 0.2}
    balancer = Balancer(SETTINGS)
    observed(balancer, view(model(WORDS, {**heavy, "1.0": "b"})), [0], {}, cpu=cpu)
    seen = view(model(WORDS, heavy))
    observed(balancer, seen, [1], {}, cpu=cpu)
    step = balancer.relieved(1.0, balancer.scene(1.0, seen))
    assert isinstance(step, Transfer)
    assert step.executor == key("0.0")


def test_when_nothing_fits_the_node_the_resource_and_the_limit_are_named():
    full = {"0.0": "a", "1.0": "a", "1.1": "b"}
    seen = view(model(WORDS, full))
    made = scene(seen, {}, cpu={(WORDS, "0.0"): 0.5, (WORDS, "1.0"): 0.5, (WORDS, "1.1"): 0.7})
    balancer = Balancer(SETTINGS)
    (blocked,) = balancer.relieved(0.0, made)
    assert isinstance(blocked, Blocked)
    assert (blocked.node, blocked.resource, blocked.nearest, blocked.limit) == ("a", "worker", "b", "gamma")
