"""Limits, and naming the one that is broken."""

from __future__ import annotations

import pytest
from tests.placement.problems import capacities, flows, keys, slots

from penstock.errors import UsageError
from penstock.placement.feasible import excesses, require_possible, usable
from penstock.placement.limits import Limits, most_executors, nodes_used, workers_counted
from penstock.placement.plan import ExecutorLoad, NodeCapacity, Placement, Problem, WorkerSlot
from penstock.placement.registry import place

PLANNERS = ["offline", "traffic", "adaptive"]


@pytest.mark.parametrize(
    ("executors", "workers", "alpha", "most"),
    [
        (30, 8, 0.0, 4),
        (30, 8, 0.2, 8),
        (30, 8, 1.0, 23),
        (10, 5, 0.0, 2),
        (10, 5, 0.05, 3),
        (3, 8, 1.0, 1),
        (7, 3, None, 7),
    ],
)
def test_executors_per_worker_by_the_formula(executors, workers, alpha, most):
    assert most_executors(executors, workers, alpha) == most


def test_workers_count_while_each_can_have_two_executors():
    assert [workers_counted(n, 8) for n in (0, 1, 3, 4, 12, 100)] == [1, 1, 1, 2, 6, 8]


def test_the_share_of_nodes():
    assert [nodes_used(10, beta) for beta in (0.01, 0.3, 0.31, 1.0)] == [1, 3, 4, 10]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"alpha": -0.1}, "alpha cannot be -0.1"),
        ({"alpha": 1.5}, "from 0 to 1"),
        ({"beta": 0.0}, "beta"),
        ({"gamma": 0.0}, "gamma"),
        ({"gamma": float("nan")}, "gamma cannot be nan"),
        ({"delta": 0}, "delta cannot be 0"),
        ({"fill": 1.1}, "fill"),
    ],
)
def test_limits_that_make_no_sense(wrong, text):
    with pytest.raises(UsageError, match=text):
        Limits(**wrong)


def test_beta_and_delta_choose_workers_in_use_first():
    executors = keys(2)
    problem = Problem(
        executors,
        slots(a=2, b=2, c=2),
        nodes={"a": NodeCapacity("a", cpus=1), "b": NodeCapacity("b", cpus=1), "c": NodeCapacity("c", cpus=4)},
        current=Placement({executors[0]: WorkerSlot("b", 1)}),
        limits=Limits(beta=0.6, delta=1),
    )
    assert usable(problem) == (WorkerSlot("b", 1), WorkerSlot("c", 0))


def test_a_node_says_how_many_workers_it_can_run():
    problem = Problem(keys(2), slots(a=3), nodes={"a": NodeCapacity("a", slots=2)})
    assert usable(problem) == slots(a=2)
    broken = excesses(problem, Placement(dict(zip(keys(2), (WorkerSlot("a", 0), WorkerSlot("z", 0)), strict=True))))
    assert [e.limit for e in broken] == ["worker", "beta"]


@pytest.mark.parametrize("name", PLANNERS)
@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"load": {keys(4)[1]: ExecutorLoad(cpu=3)}}, r"limit cpu: executor m:1\.0 needs 3, the most that fits .* 2"),
        ({"load": dict.fromkeys(keys(4), ExecutorLoad(cpu=1.5))}, "limit cpu: the executors need 6, the 2 nodes .* 4"),
        ({"load": dict.fromkeys(keys(3), ExecutorLoad(cpu=1.2))}, "cpu of node"),
        ({"load": dict.fromkeys(keys(4), ExecutorLoad(memory=60))}, "limit memory: .* need 240, .* room for 200"),
        ({"load": dict.fromkeys(keys(4), ExecutorLoad(cpu=0.9)), "limits": Limits(gamma=0.8)}, "limit gamma: .* 0.8"),
        ({"apart": ((keys(4)[0], keys(4)[1]),), "limits": Limits(beta=0.5)}, "limit apart: m:0.0 and m:1.0 must not"),
        (
            {"apart": ((keys(4)[0], keys(4)[1]), (keys(4)[1], keys(4)[2]), (keys(4)[0], keys(4)[2]))},
            r"every limit; .*apart of m:\d\.0 and m:\d\.0 on node",
        ),
    ],
)
def test_impossible_limits_are_named(name, changed, text):
    base = {"executors": keys(4), "workers": slots(a=1, b=1), "nodes": capacities(2.0, "a", "b", memory=100)}
    with pytest.raises(UsageError, match=text):
        place(name, Problem(**{**base, **changed}))


def test_a_network_that_is_too_small_is_named():
    executors = keys(2)
    problem = Problem(
        executors,
        slots(a=1, b=1),
        nodes=capacities(2.0, "a", "b", network=500.0),
        traffic=flows(executors, {(0, 1): 1.0}),
        apart=(executors,),
    )
    with pytest.raises(UsageError, match="network of node a: 1000, at most 500"):
        place("adaptive", problem)


def test_no_nodes():
    with pytest.raises(UsageError, match="there is no worker for 4 executors"):
        Problem(keys(4), ())
    for name in (*PLANNERS, "balance", "even"):
        assert place(name, Problem((), ())) == Placement({})
        assert place(name, Problem((), slots(a=1))) == Placement({})
    require_possible(Problem((), ()))


def test_a_pinned_executor_must_run():
    executors = keys(1)
    with pytest.raises(UsageError, match=r"m:0\.0 is pinned, but does not run"):
        Problem(executors, slots(a=1), pinned=frozenset(executors))
    with pytest.raises(UsageError, match="horizon above 0"):
        Problem(executors, slots(a=1), horizon=0.0)
