"""Transfers by resources."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from tests.placement.problems import capacities, flows, keys, problems, slots

from penstock.placement.balance import Blocked, Transfer, transfer, vectors
from penstock.placement.limits import Limits
from penstock.placement.plan import ExecutorLoad, NodeCapacity, Placement, Problem
from penstock.placement.registry import place

FREE = Limits(alpha=None)


def overloaded(**changes) -> tuple[Problem, Placement]:
    """Node a has too much CPU; b is half full, c nearly full, d empty but small."""
    executors = keys(5)
    cpu = (0.3, 0.8, 0.2, 0.5, 0.9)
    a, b, c, d = slots(a=1, b=1, c=1, d=1)
    nodes = {**capacities(1.0, "a", "b", "c"), "d": NodeCapacity("d", cpus=0.5)}
    load = {key: ExecutorLoad(cpu=own) for key, own in zip(executors, cpu, strict=True)}
    running = Placement(dict(zip(executors, (a, a, a, b, c), strict=True)))
    problem = Problem(executors, (a, b, c, d), nodes=nodes, load=load, current=running, limits=FREE)
    return replace(problem, **changes), running


def test_nothing_to_do():
    problem, running = overloaded(load={})
    assert transfer(problem, running) is None
    assert place("balance", problem) == running


def test_the_greatest_user_that_fits_anywhere_moves():
    problem, running = overloaded()
    step = transfer(problem, running)
    assert isinstance(step, Transfer)
    assert (str(step.executor), step.source.node, step.resource) == ("m:0.0", "a", "cpu"), "0.8 fits on no other node"
    assert step.target.node == "d", "beside 0.5 of 1, it is d that makes the nodes most alike"


def test_the_target_makes_the_nodes_most_alike():
    problem, running = overloaded()
    options = {}
    for slot in problem.workers[1:]:
        nodes = vectors(problem, Placement({**running.workers, keys(5)[0]: slot}))
        mean = [sum(values) / 4 for values in zip(*nodes.values(), strict=True)]
        options[slot.node] = sum((x - m) ** 2 for own in nodes.values() for x, m in zip(own, mean, strict=True))
    assert min((options[node], node) for node in ("b", "d"))[1] == transfer(problem, running).target.node


def test_it_says_what_the_limit_is():
    small = {**capacities(1.0, "a", "b", "c"), "d": NodeCapacity("d", cpus=0.1)}
    load = {key: ExecutorLoad(cpu=0.8) for key in keys(5)}
    problem, running = overloaded(nodes=small, load=load)
    found = transfer(problem, running)
    assert isinstance(found, Blocked)
    assert (found.node, found.resource, found.nearest, found.limit) == ("a", "cpu", "b", "cpu")
    assert "node a uses 2.4 of 1 cpu" in str(found)
    assert "the limit is cpu of node b" in str(found)
    assert place("balance", problem) == running, "no plan is better, and that is no error"


@pytest.mark.parametrize(("resource", "fields"), [("memory", {"memory": 100}), ("network", {"network": 5_000.0})])
def test_other_resources(resource, fields):
    executors = keys(3)
    a, b, c = slots(a=1, b=1, c=1)
    running = Placement({executors[0]: a, executors[1]: a, executors[2]: b})
    problem = Problem(
        executors,
        (a, b, c),
        nodes=capacities(1.0, "a", "b", "c", **fields),
        load={executors[0]: ExecutorLoad(memory=80), executors[1]: ExecutorLoad(memory=40)},
        traffic=flows(executors, {(0, 2): 4.0, (1, 2): 1.5}) if resource == "network" else {},
        current=running,
        limits=FREE,
    )
    step = transfer(problem, running)
    assert (step.executor, step.resource) == (executors[0], resource)
    assert transfer(problem, place("balance", problem)) is None


def test_a_standby_does_not_come_to_its_primarys_node():
    executors = keys(3)
    a, b = slots(a=1, b=1)
    running = Placement({executors[0]: a, executors[1]: a, executors[2]: b})
    problem = Problem(
        executors,
        (a, b),
        nodes=capacities(1.0, "a", "b"),
        load={executors[0]: ExecutorLoad(cpu=0.8), executors[1]: ExecutorLoad(cpu=0.3)},
        current=running,
        apart=((executors[0], executors[2]),),
        limits=FREE,
    )
    assert transfer(problem, running).executor == executors[1]
    blocked = transfer(replace(problem, pinned=frozenset({executors[1]})), running)
    assert (blocked.limit, blocked.nearest) == ("apart", "b")


@settings(deadline=None, max_examples=50)
@given(problems())
def test_it_ends_and_says_so(problem):
    placement = place("balance", problem)
    assert placement.workers.keys() == set(problem.executors)
    assert placement == place("balance", problem)
    if problem.current is not None:
        assert all(placement.workers[key] == problem.current.workers[key] for key in problem.pinned)


def test_a_worker_with_too_much_gives_an_executor_to_another_one_of_its_node_or_elsewhere():
    executors = keys(3)
    problem = Problem(
        executors, slots(a=2, b=1), load={key: ExecutorLoad(0.4) for key in executors}, limits=Limits(gamma=0.8)
    )
    first, second, away = problem.workers
    crowded = Placement(dict.fromkeys(executors, first))
    step = transfer(problem, crowded)
    assert isinstance(step, Transfer)
    assert (step.executor, step.source, step.resource) == (executors[0], first, "worker")
    assert step.target in (second, away)
    assert transfer(problem, Placement({**crowded.workers, executors[0]: second})) is None


def test_a_worker_of_which_nothing_fits_elsewhere_says_so():
    executors = keys(3)
    load = {executors[0]: ExecutorLoad(0.5), executors[1]: ExecutorLoad(0.5), executors[2]: ExecutorLoad(0.7)}
    problem = Problem(executors, slots(a=1, b=1), load=load, limits=Limits(gamma=0.8))
    a, b = problem.workers
    stuck = transfer(problem, Placement({executors[0]: a, executors[1]: a, executors[2]: b}))
    assert isinstance(stuck, Blocked)
    assert (stuck.node, stuck.resource, stuck.limit, stuck.nearest) == ("a", "worker", "gamma", "b")
    assert str(stuck).startswith("node a uses 1 of 0.8 cores of one worker")
