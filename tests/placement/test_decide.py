"""Whether a plan is changed, and what people are told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.placement.problems import capacities, flows, keys, slots

from penstock.errors import UsageError
from penstock.placement.decide import History, Policy, decide
from penstock.placement.explain import explain
from penstock.placement.latency import Hops, latency
from penstock.placement.limits import Limits
from penstock.placement.plan import ExecutorLoad, Placement, Problem, Traffic

A, B = slots(a=1, b=1)
EXECUTORS = keys(4)
APART = Placement(dict(zip(EXECUTORS, (A, B, A, B), strict=True)))
PAIRED = Placement(dict(zip(EXECUTORS, (A, A, B, B), strict=True)))
"""Two moves from APART."""


def problem(rates: dict[tuple[int, int], float], state: int = 0, **changes) -> Problem:
    return Problem(
        **{
            "executors": EXECUTORS,
            "workers": (A, B),
            "nodes": capacities(2.0, "a", "b"),
            "load": dict.fromkeys(EXECUTORS, ExecutorLoad(cpu=0.5, state=state)),
            "traffic": flows(EXECUTORS, rates),
            "current": APART,
            "limits": Limits(alpha=None),
            **changes,
        }
    )


GOOD = {(0, 1): 100.0, (2, 3): 100.0, (1, 2): 10.0}


def test_a_gain_that_pays_is_taken():
    verdict = decide(problem(GOOD), PAIRED, now=100.0)
    assert verdict.apply
    assert verdict.reason == str(verdict.explanation)
    assert verdict.reason.startswith("cut 100% -> 5%, 2 moves, 128 KiB to carry, latency")


def test_an_equal_plan_is_not_applied():
    equal = Placement({key: B if slot == A else A for key, slot in APART.workers.items()})
    verdict = decide(problem(GOOD), equal, now=100.0)
    assert not verdict.apply
    assert "saves no traffic" in verdict.reason
    same = decide(problem(GOOD), APART, now=100.0)
    assert not same.apply
    assert "nothing would move" in same.reason


def test_a_small_gain_is_left():
    rates = {(0, 1): 1.0, (0, 3): 100.0}
    better = Placement({**APART.workers, EXECUTORS[1]: A})
    verdict = decide(problem(rates), better, now=0.0)
    assert not verdict.apply
    assert "less than 10.0%" in verdict.reason
    verdict = decide(problem(rates), better, now=0.0, policy=Policy(threshold=0.001))
    assert verdict.reason == "in 60 s the proposal saves 60,000 bytes; its moves cost 65,536"


def test_a_gain_that_does_not_pay_for_the_state_is_left():
    heavy = problem(GOOD, state=10_000_000)
    verdict = decide(heavy, PAIRED, now=0.0)
    assert not verdict.apply
    assert verdict.reason == "in 60 s the proposal saves 12,000,000 bytes; its moves cost 20,131,072"
    assert decide(replace(heavy, horizon=120.0), PAIRED, now=0.0).apply


def test_not_twice_within_the_interval():
    policy = Policy(interval=30.0)
    assert not decide(problem(GOOD), PAIRED, 129.0, History(changed=100.0), policy).apply
    assert decide(problem(GOOD), PAIRED, 130.0, History(changed=100.0), policy).apply


def test_an_executor_does_not_go_back_soon():
    policy = Policy(interval=10.0, guard=100.0)
    first = decide(problem(GOOD), PAIRED, 0.0, policy=policy)
    history = History().after(first.explanation.moves, 0.0, policy)
    turned = problem({(0, 3): 100.0, (1, 2): 100.0}, current=PAIRED)
    back = Placement(dict(zip(EXECUTORS, (A, B, B, A), strict=True)))
    verdict = decide(turned, back, 50.0, history, policy)
    assert not verdict.apply
    assert "left b#0 less than 100 s ago" in verdict.reason
    assert decide(turned, back, 101.0, history, policy).apply
    assert history.after((), 101.0, policy).moves == (), "memory is bounded by the guard"


def test_overload_is_reason_enough():
    crowded = Placement(dict.fromkeys(EXECUTORS, A))
    asked = problem(GOOD, state=10**9, current=crowded, nodes=capacities(1.5, "a", "b"))
    verdict = decide(asked, PAIRED, now=0.0)
    assert verdict.apply
    assert "cpu of node a: 2, at most 1.5" in verdict.reason
    assert not decide(replace(asked, current=PAIRED), crowded, now=0.0).apply
    assert not decide(asked, PAIRED, 5.0, History(changed=0.0)).apply, "every interval, not faster"


def test_executors_without_a_worker_are_started():
    asked = problem(GOOD, current=Placement({EXECUTORS[0]: A}))
    verdict = decide(asked, PAIRED, 1.0, History(changed=0.0))
    assert verdict.apply
    assert verdict.explanation.started == EXECUTORS[1:]


def test_a_policy_that_makes_no_sense():
    with pytest.raises(UsageError, match="threshold=2"):
        Policy(threshold=2)


def test_an_explanation_has_the_figures():
    why = explain(problem(GOOD, state=1000), PAIRED)
    assert (why.before.share, round(why.after.share, 3)) == (1.0, 0.048)
    assert why.before.cut.bytes - why.after.cut.bytes == why.gain == 200_000.0
    assert [(str(m.executor), str(m.source), str(m.target), m.state) for m in why.moves] == [
        ("m:1.0", "b#0", "a#0", 1000),
        ("m:2.0", "a#0", "b#0", 1000),
    ]
    assert why.cost == 2 * (1000 + 65_536)
    assert why.after.load == {"a": 1.0, "b": 1.0}
    assert str(why).startswith("cut 100% -> 5%, 2 moves, 130 KiB to carry")


def test_latency_is_the_longest_way():
    hops = Hops(worker=1.0, node=10.0, network=100.0)
    one = Traffic(1.0, 0.0)
    k = EXECUTORS
    fork = {(k[0], k[1]): one, (k[0], k[2]): one, (k[2], k[3]): one}
    asked = problem({}, traffic=fork)
    assert latency(asked, PAIRED, hops) == 101.0
    assert latency(asked, APART, hops) == 101.0
    assert latency(asked, Placement(dict.fromkeys(k, A)), hops) == 2.0
    assert latency(problem({}, traffic={}), PAIRED, hops) == 0.0
    weighed = problem({}, traffic={(k[0], k[1]): Traffic(3.0, 0.0)} | fork)
    assert latency(weighed, APART, hops) == 101.0
