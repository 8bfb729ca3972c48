"""The improved plan against the exact optimum, and what holds whatever is asked."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from tests.placement.exact import cheapest, random_problem
from tests.placement.problems import capacities, flows, keys, on, planned, problems, slots

from penstock.placement.adaptive import adaptive
from penstock.placement.cost import cut, objective, rate
from penstock.placement.feasible import excesses
from penstock.placement.limits import Limits
from penstock.placement.plan import ExecutorLoad, Placement, Problem
from penstock.placement.registry import place


def test_within_five_percent_of_the_optimum():
    ratios = []
    for seed in range(80):
        problem = random_problem(seed)
        exact = cheapest(problem)
        assert exact is not None, "these instances have plans"
        found = objective(problem, adaptive(problem))
        assert found >= exact[0] - 1e-6, "nothing is cheaper than the optimum"
        ratios.append(found / exact[0] if exact[0] > 1e-9 else 1.0 + found)
    assert sum(ratios) / len(ratios) < 1.05
    assert max(ratios) < 1.25


def test_it_is_never_dearer_than_the_greedy_plan():
    for seed in range(100, 140):
        problem = random_problem(seed)
        assert objective(problem, adaptive(problem)) <= objective(problem, place("traffic", problem)) + 1e-6


@settings(deadline=None)
@given(problems())
def test_whatever_is_asked(problem):
    placement = planned("adaptive", problem)
    if placement is None:
        return
    assert placement.workers.keys() == set(problem.executors), "each is placed once"
    assert not excesses(problem, placement), "limits hold"
    assert all(placement.workers[key] == problem.current.workers[key] for key in problem.pinned)
    assert adaptive(problem) == placement, "equal problems, equal answers"
    running = problem.current
    if running is not None and running.workers.keys() == placement.workers.keys() and not excesses(problem, running):
        cost = objective(problem, running)
        assert objective(problem, placement) <= cost + 1e-9 * max(1.0, cost)


@settings(deadline=None)
@given(problems())
def test_it_settles(problem):
    running = planned("adaptive", problem)
    if running is None:
        return
    for _ in range(4):
        asked = replace(problem, current=running)
        proposal = adaptive(asked)
        if proposal == running:
            return
        saved = rate(cut(problem, running)) - rate(cut(problem, proposal))
        assert saved > 0, "a plan that runs is only left for a strictly cheaper one"
        running = proposal
    assert adaptive(replace(problem, current=running)) == running


def test_state_is_carried_only_for_traffic_that_pays():
    executors = keys(4)
    a, b = slots(a=1, b=1)
    current = Placement({executors[0]: a, executors[1]: b, executors[2]: a, executors[3]: b})
    problem = Problem(
        executors,
        (a, b),
        load={key: ExecutorLoad(state=50_000_000) for key in executors},
        traffic=flows(executors, {(0, 1): 100.0}),
        current=current,
        limits=Limits(alpha=None),
    )
    assert adaptive(replace(problem, horizon=60.0)) == current, "6 MB saved, 50 MB carried"
    assert len(current.moves(adaptive(replace(problem, horizon=600.0)))) == 1, "60 MB saved"
    assert adaptive(replace(problem, horizon=600.0, load={})) != current


def test_full_nodes_exchange_executors():
    executors = keys(4)
    a, b = slots(a=1, b=1)
    problem = Problem(
        executors,
        (a, b),
        nodes=capacities(1.0, "a", "b"),
        load=dict.fromkeys(executors, ExecutorLoad(cpu=0.5)),
        traffic=flows(executors, {(0, 1): 100.0, (2, 3): 100.0}),
        current=Placement({executors[0]: a, executors[1]: b, executors[2]: a, executors[3]: b}),
    )
    placement = adaptive(problem)
    assert cut(problem, placement).bytes == 0
    assert len(problem.current.moves(placement)) == 2


def test_an_overloaded_node_is_relieved():
    executors = keys(3)
    a, b = slots(a=1, b=1)
    problem = Problem(
        executors,
        (a, b),
        nodes=capacities(1.0, "a", "b"),
        load=dict.fromkeys(executors, ExecutorLoad(cpu=0.5)),
        traffic=flows(executors, {(0, 1): 100.0, (1, 2): 1.0}),
        current=Placement(dict.fromkeys(executors, a)),
        limits=Limits(alpha=None),
    )
    assert on(problem, adaptive(problem)) == ["a", "a", "b"]


def test_the_network_of_a_node_is_a_limit():
    executors = keys(4)
    a, b = slots(a=1, b=1)
    pairs = flows(executors, {(0, 2): 10.0, (1, 3): 10.0})
    problem = Problem(
        executors,
        (a, b),
        nodes=capacities(9.0, "a", "b", network=10_000.0),
        load={key: ExecutorLoad(state=10**9) for key in executors},
        traffic=pairs,
        current=Placement({executors[0]: a, executors[1]: a, executors[2]: b, executors[3]: b}),
        limits=Limits(alpha=None),
    )
    placement = adaptive(problem)
    assert len(problem.current.moves(placement)) == 1, "dear moves, but only one pair may be cut"
    assert not excesses(problem, placement)
