"""Placement by structure alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from tests.placement.problems import keys, planned, problems, slots, together
from tests.placement.test_plan import edge, topology

from penstock.placement.feasible import excesses
from penstock.placement.limits import Limits
from penstock.placement.offline import linear, offline
from penstock.placement.plan import ExecutorKey, Placement, Problem, WorkerSlot, executor_keys, links


def test_links_are_the_pairs_that_channels_join():
    diamond = topology(edge(0, 0, 1), edge(1, 0, 1, port=1), edge(2, 1, 2, "pipe"))
    assert [(str(a), str(b)) for a, b in links("m", diamond, {0: 2, 1: 1, 2: 1})] == [
        ("m:0.0", "m:1.0"),
        ("m:0.1", "m:1.0"),
        ("m:1.0", "m:2.0"),
    ]


def test_producers_come_first_whatever_the_numbers():
    a, b, c = (ExecutorKey("m", stage, 0) for stage in (2, 0, 1))
    other = ExecutorKey("b", 0, 0)
    assert linear((a, b, c, other), ((a, b), (b, c))) == [other, a, b, c]
    assert len(linear((a, b, c), ((a, b), (b, a), (b, c)))) == 3, "a circle does no harm"


def test_chains_stay_together_without_any_measurement():
    executors = executor_keys("m", {0: 2, 1: 2, 2: 2})
    pipes = tuple((ExecutorKey("m", s, i), ExecutorKey("m", s + 1, i)) for s in (0, 1) for i in (0, 1))
    problem = Problem(executors, slots(a=1, b=1), links=pipes, limits=Limits(alpha=0.0))
    assert together(offline(problem)) == {frozenset(k for k in executors if k.index == i) for i in (0, 1)}


def test_without_links_what_was_exchanged_tells_the_structure():
    executors = keys(4)
    pairs = ((executors[0], executors[1]), (executors[2], executors[3]))
    problem = Problem(executors, slots(a=1, b=1), links=pairs, limits=Limits(alpha=0.0))
    assert together(offline(problem)) == {frozenset(pair) for pair in pairs}


def test_no_worker_is_left_without_an_executor():
    executors = executor_keys("m", {0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1})
    chain = tuple(pairwise(executors))
    problem = Problem(executors, slots(a=1, b=1, c=1), links=chain, limits=Limits(alpha=1.0))
    placement = offline(problem)
    assert [len(placement.on(worker)) for worker in problem.workers] == [4, 1, 1]


def test_beta_bounds_the_nodes():
    executors = executor_keys("m", {0: 4, 1: 4})
    problem = Problem(executors, slots(a=1, b=1, c=1, d=1))
    used = [len(offline(replace(problem, limits=Limits(beta=beta))).nodes()) for beta in (0.1, 0.5, 0.75, 1.0)]
    assert used == [1, 2, 3, 4]


def test_what_runs_keeps_its_place_when_it_can():
    executors = keys(4)
    a, b = slots(a=1, b=1)
    pairs = ((executors[0], executors[1]), (executors[2], executors[3]))
    current = Placement({executors[0]: b, executors[1]: b, executors[2]: a, executors[3]: WorkerSlot("gone", 0)})
    problem = Problem(executors, (a, b), links=pairs, current=current, limits=Limits(alpha=0.0))
    assert current.moves(offline(problem)) == (executors[3],)


@settings(deadline=None)
@given(problems())
def test_whatever_is_asked_the_plan_is_complete_and_keeps_the_limits(problem):
    placement = planned("offline", problem)
    if placement is None:
        return
    assert placement.workers.keys() == set(problem.executors)
    assert not excesses(problem, placement)
    assert all(placement.workers[key] == problem.current.workers[key] for key in problem.pinned)
