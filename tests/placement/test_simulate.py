"""The published evaluation, as a calculation: its qualitative results."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.placement.problems import keys, slots

from penstock.errors import UsageError
from penstock.placement import registry
from penstock.placement.feasible import excesses
from penstock.placement.limits import Limits
from penstock.placement.plan import Problem
from penstock.placement.simulate import Chain, compare, timeline


@pytest.mark.parametrize("nodes", [4, 8])
@pytest.mark.parametrize("executors", [2, 4])
@pytest.mark.parametrize("steps", [3, 5, 7])
def test_adaptive_is_better_than_even_by_more_than_a_quarter(steps, executors, nodes):
    problem = Chain(steps, executors, skew=0.8).problem(nodes)
    even, offline, traffic, adaptive = compare(problem, ["even", "offline", "traffic", "adaptive"])
    assert adaptive.latency < 0.75 * even.latency
    assert adaptive.cut < 0.75 * even.cut
    assert adaptive.cut <= traffic.cut
    assert adaptive.cut < offline.cut
    assert adaptive.moves > 0


def test_more_uneven_workers_save_more_traffic():
    problem = Chain(steps=6, executors=5, skew=0.5).problem(8)
    cuts = [compare(replace(problem, limits=Limits(alpha=a)), ["adaptive"])[0].cut for a in (0.0, 0.05, 0.1, 0.2)]
    assert cuts == sorted(cuts, reverse=True)
    assert cuts[-1] < cuts[0]


def test_the_switch():
    moments = timeline(Chain(steps=5, executors=4, state=10_000).problem(4), seconds=110)
    before, after = moments[49], moments[-1]
    assert {m.latency for m in moments[:50]} == {before.latency}
    assert moments[50].moves > 0
    assert after.latency < 0.75 * before.latency
    assert sum(m.moves for m in moments[51:]) == 0, "nothing changes, so nothing moves again"
    assert moments[51].reason != ""


def test_many_models_on_many_nodes():
    problem = Chain(steps=5, executors=2, chains=20, cpu=0.18).problem(20)
    even, adaptive = compare(problem, ["even", "adaptive"])
    assert adaptive.latency < 0.75 * even.latency
    plan = registry.place("adaptive", problem)
    assert not excesses(problem, plan)


def test_a_strategy_that_raises_is_a_clear_error(monkeypatch):
    def broken(problem):
        return {}["nothing"]

    monkeypatch.setitem(registry.STRATEGIES, "odd", broken)
    with pytest.raises(UsageError, match=r"placement strategy 'odd' failed: KeyError: 'nothing'\n.*running plan stays"):
        registry.place("odd", Problem(keys(1), slots(a=1)))
    assert sorted(registry.STRATEGIES) == ["adaptive", "balance", "even", "odd", "offline", "traffic"]
    assert registry.DEFAULT == "even"
