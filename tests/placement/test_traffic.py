"""The greedy strategy; each fault of the published code has a test here."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from tests.placement.problems import capacities, flows, keys, on, planned, problems, slots, together

from penstock.errors import UsageError
from penstock.placement.cost import cut, rate
from penstock.placement.feasible import excesses, used_resources
from penstock.placement.limits import Limits
from penstock.placement.plan import ExecutorLoad, Placement, Problem, WorkerSlot
from penstock.placement.registry import place
from penstock.placement.traffic import traffic


def test_the_heaviest_pairs_share_a_worker():
    executors = keys(4)
    problem = Problem(
        executors, slots(a=1, b=1), traffic=flows(executors, {(0, 1): 1, (0, 2): 9, (1, 3): 8, (2, 3): 2})
    )
    assert together(traffic(problem)) == {
        frozenset({executors[0], executors[2]}),
        frozenset({executors[1], executors[3]}),
    }


def test_workers_that_talk_share_a_node():
    executors = keys(8)
    pairs = {(i, i + 1): 100.0 for i in (0, 2, 4, 6)} | {(1, 4): 10.0, (3, 6): 9.0, (0, 2): 1.0}
    problem = Problem(executors, slots(a=2, b=2), traffic=flows(executors, pairs), limits=Limits(alpha=0.0))
    groups = together(traffic(problem))
    assert groups == {frozenset(executors[i] for i in own) for own in ((0, 1, 4, 5), (2, 3, 6, 7))}


def test_the_planned_load_of_nodes_adds_up():
    """Published: every worker is compared with the load that a node had before the plan, so one node gets all."""
    executors = keys(8)
    problem = Problem(
        executors,
        slots(a=4, b=4),
        nodes=capacities(1.0, "a", "b"),
        load=dict.fromkeys(executors, ExecutorLoad(cpu=0.25)),
        traffic=flows(executors, {(i, i + 1): 10.0 for i in range(7)}),
    )
    placement = traffic(problem)
    assert {node: own[0] for node, own in used_resources(problem, placement).items()} == {"a": 1.0, "b": 1.0}


def test_what_has_no_traffic_is_placed():
    """Published: workers without traffic appear in no pair and get no node."""
    executors = keys(6)
    problem = Problem(executors, slots(a=2, b=2), traffic=flows(executors, {(0, 1): 5.0}))
    placement = place("traffic", problem)
    assert len(placement.workers) == 6
    assert set(placement.nodes()) == {"a", "b"}
    silent = place("traffic", replace(problem, traffic={}))
    assert sorted(len(silent.on(w)) for w in problem.workers) == [1, 1, 2, 2]


def test_plans_are_matched_to_what_runs():
    """Published: groups get the names in the order in which they were formed, and all of them move."""
    executors = keys(4)
    a, b = slots(a=1, b=1)
    current = Placement({executors[0]: b, executors[1]: b, executors[2]: a, executors[3]: a})
    problem = Problem(executors, (a, b), traffic=flows(executors, {(0, 1): 9.0, (2, 3): 5.0}), current=current)
    assert traffic(replace(problem, current=None)) != current
    assert traffic(problem) == current


def test_an_equal_plan_is_the_running_plan():
    """Published: a plan with equal gain is applied again and again."""
    executors = keys(6)
    problem = Problem(executors, slots(a=1, b=1, c=1), traffic=flows(executors, {(0, 1): 5, (2, 3): 5, (4, 5): 5}))
    first = traffic(problem)
    again = traffic(replace(problem, current=first))
    assert first.moves(again) == ()


def test_pinned_executors_stay_and_attract():
    executors = keys(4)
    a, b = slots(a=1, b=1)
    problem = Problem(
        executors,
        (a, b),
        traffic=flows(executors, {(0, 1): 5, (2, 3): 4}),
        current=Placement({executors[0]: b, executors[2]: a}),
        pinned=frozenset({executors[0], executors[2]}),
    )
    for name in ("traffic", "adaptive"):
        assert on(problem, place(name, problem)) == ["b", "b", "a", "a"]


def test_a_standby_is_not_on_its_primarys_node():
    executors = keys(2)
    problem = Problem(
        executors, slots(a=2, b=2), traffic=flows(executors, {(0, 1): 5}), apart=(executors,), limits=Limits(alpha=None)
    )
    for name in ("traffic", "offline", "adaptive"):
        assert len(place(name, problem).nodes()) == 2


def test_alpha_bounds_the_executors_of_a_worker():
    executors = keys(6)
    star = flows(executors, {(0, i): 10.0 for i in range(1, 6)})
    problem = Problem(executors, slots(a=1, b=1, c=1), traffic=star)
    cuts = []
    for alpha in (0.0, 0.5, 1.0, None):
        placement = traffic(replace(problem, limits=Limits(alpha=alpha)))
        cuts.append(rate(cut(problem, placement)) / 10_000)
    assert cuts == [4.0, 3.0, 2.0, 0.0]


@settings(deadline=None)
@given(problems())
def test_whatever_is_asked_the_plan_is_complete_and_keeps_the_limits(problem):
    placement = planned("traffic", problem)
    if placement is None:
        return
    assert placement.workers.keys() == set(problem.executors)
    assert not excesses(problem, placement)
    assert all(placement.workers[key] == problem.current.workers[key] for key in problem.pinned)
    shuffled = replace(
        problem,
        executors=problem.executors[::-1],
        workers=problem.workers[::-1],
        traffic=dict(reversed(problem.traffic.items())),
    )
    assert traffic(shuffled) == placement


def test_memory_bounds_a_node():
    executors = keys(4)
    problem = Problem(
        executors,
        slots(a=1, b=1),
        nodes=capacities(4.0, "a", "b", memory=100),
        load=dict.fromkeys(executors, ExecutorLoad(memory=40)),
        traffic=flows(executors, {(0, 1): 3, (1, 2): 2, (2, 3): 1}),
        limits=Limits(alpha=None),
    )
    assert sorted(map(len, together(traffic(problem)))) == [2, 2]
    with pytest.raises(UsageError, match="memory"):
        traffic(replace(problem, load=dict.fromkeys(executors, ExecutorLoad(memory=51))))


def test_a_worker_that_is_not_offered_any_more_is_left():
    executors = keys(2)
    problem = Problem(
        executors,
        slots(a=1),
        current=Placement(dict.fromkeys(executors, WorkerSlot("gone", 0))),
        limits=Limits(alpha=None),
    )
    for name in ("traffic", "adaptive", "offline", "balance"):
        assert place(name, problem).nodes() == ("a",)
