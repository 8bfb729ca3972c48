"""Fail-over, moves and upgrades under seeds: see `simulator`. A failing seed is reproduced by `simulate(seed)`."""

from __future__ import annotations

from collections import Counter

import pytest

from .mutants import MUTANTS, broken
from .simulator import SHAPES, Violation, simulate

BLOCK = 400


@pytest.mark.parametrize("block", range(5))
def test_nothing_is_lost_repeated_or_reordered(block):
    happened: Counter[str] = Counter()
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        try:
            happened += simulate(seed).stats
        except Violation as violation:
            pytest.fail(f"seed {seed}: {violation}")
    events = (
        "promoted", "handed over", "upgraded", "crashed primary", "crashed standby", "crashed in catch-up", "paused",
        "checkpoints", "diverged", "removed",
    )  # fmt: skip
    for event in events:
        assert happened[event] > 0, f"these seeds never saw: {event}"
    assert happened["whole"] > 0.9 * BLOCK


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(shape):
    for seed in range(10_000, 10_020):
        simulate(seed, shape)


# Found by long runs, and repaired.
@pytest.mark.parametrize("seed", [43, 102, 3668, 10151, 10479, 10927, 12985, 13688])
def test_seeds_that_once_failed(seed):
    simulate(seed)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_simulator_finds_broken_rules(mutant):
    def find() -> None:
        for seed in range(8000):
            simulate(seed)

    with broken(mutant), pytest.raises(Violation):
        find()
