"""The whole protocol under seeds: see `simulator`. A failing seed is reproduced by `simulate(seed)`."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.cluster.transaction.hosts import Violation
from tests.cluster.transaction.simulator import FAULTS, simulate

BLOCK = 100


@pytest.mark.parametrize("block", range(20))
def test_on_every_node_or_on_none(block):
    happened: Counter[str] = Counter()
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        try:
            happened += simulate(seed)
        except Violation as violation:
            pytest.fail(f"seed {seed}: {violation}")
    for event in ("done", "rolled back", "refused", "crashes", "forgotten", "rebuilt", "joiners", "power cuts"):
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
