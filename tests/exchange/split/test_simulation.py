"""Splits and merges under seeds: see `simulator`. A failing seed is reproduced by `simulate(seed)`."""

from __future__ import annotations

from collections import Counter

import pytest

from .mutants import MUTANTS, STRAGGLING, broken
from .simulator import Violation, simulate

BLOCK = 250


@pytest.mark.parametrize("block", range(8))
def test_nothing_is_lost_repeated_or_reordered(block):
    happened: Counter[str] = Counter()
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        try:
            happened += simulate(seed).stats
        except Violation as violation:
            pytest.fail(f"seed {seed}: {violation}")
    events = [
        f"{who} failed over while {phase}"
        for who in ("producer", "giver", "taker", "consumer")
        for phase in ("switching", "committed")
    ]
    for event in (*events, "producer failed over while abandoned", "leader replaced", "paused", "newcomer lost"):
        assert happened[event] > 0, f"these seeds never saw: {event}"
    assert happened["committed under way"] > BLOCK / 4
    assert happened["finished"] == happened["committed"] + happened["abandoned"] == happened["preparing"]


# Found while the protocol was made: ways in which it could be wrong.
@pytest.mark.parametrize("seed", [141, 249])
def test_seeds_that_once_failed(seed):
    simulate(seed)


def test_a_taker_that_is_behind():
    for seed in range(150):
        simulate(seed, straggling=True)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_simulator_finds_broken_rules(mutant):
    def find() -> None:
        for seed in range(2500):
            simulate(seed, straggling=mutant in STRAGGLING)

    with broken(mutant), pytest.raises(Violation):
        find()
