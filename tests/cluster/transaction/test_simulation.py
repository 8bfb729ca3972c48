"""The whole protocol under seeds: see `simulator`. A failing seed is reproduced by `simulate(seed)`."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.cluster.transaction.hosts import Violation
from tests.cluster.transaction.scenarios import (
    a_newcomer_at_a_bad_moment,
    away_for_everybody,
    cut_off,
    cut_off_among_failing_calls,
    emptied_again_and_again,
    emptied_while_one_returns,
)
from tests.cluster.transaction.simulator import FAULTS, simulate

BLOCK = 100
SEEN = (
    "done",
    "rolled back",
    "refused",
    "crashes",
    "forgotten",
    "rebuilt",
    "joiners",
    "power cuts",
    "promised",
    "archived",
)


@pytest.mark.parametrize("block", range(20))
def test_on_every_node_or_on_none(block):
    happened: Counter[str] = Counter()
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        try:
            happened += simulate(seed)
        except Violation as violation:
            pytest.fail(f"seed {seed}: {violation}")
    for event in SEEN:
        assert happened[event] > 0, f"these seeds never saw: {event}"


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone(fault):
    happened: Counter[str] = Counter()
    for seed in range(20):
        happened += simulate(seed, {fault})
    assert happened["done"] > 0


def test_without_faults_everything_possible_is_done():
    happened: Counter[str] = Counter()
    for seed in range(40):
        happened += simulate(seed, set())
    assert happened["aborted"] == happened["forgotten"] == 0
    assert happened["done"] > 40


@pytest.mark.parametrize("emptied", [emptied_again_and_again, emptied_while_one_returns])
@pytest.mark.parametrize("block", range(3))
def test_emptied_again(block, emptied):
    happened: Counter[str] = Counter()
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        try:
            happened += emptied(seed)
        except Violation as violation:
            pytest.fail(f"seed {seed}: {violation}")
    assert happened["rebuilt"] > BLOCK


@pytest.mark.parametrize("emptied", [False, True])
def test_everything_goes_on_while_the_store_is_away_for_everybody(emptied):
    for seed in range(60):
        happened = away_for_everybody(seed, emptied)
        assert happened["promised"] > 0 or seed % 4 == 0
        assert happened["flushes"] == emptied


def test_a_node_cut_off_alone_stops_and_the_others_go_on():
    for seed in range(30):
        assert cut_off(seed)["forgotten"] == 1


@pytest.mark.parametrize("trouble", [a_newcomer_at_a_bad_moment, cut_off_among_failing_calls])
def test_nobody_goes_on_who_was_struck_off(trouble):
    happened: Counter[str] = Counter()
    for seed in range(100):
        happened += trouble(seed)
    assert happened["promised"] > 0
    assert happened["forgotten"] > 0
