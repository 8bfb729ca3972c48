"""The whole data plane under seeds: see `simulator`. A failing seed is reproduced by `simulate(seed)`."""

from __future__ import annotations

from collections import Counter

import pytest

from .simulator import SHAPES, Violation, simulate

BLOCK = 100


@pytest.mark.parametrize("block", range(20))
def test_no_dead_lock_bounded_memory_and_exactly_once(block):
    happened: Counter[str] = Counter()
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        try:
            happened += simulate(seed).stats
        except Violation as violation:
            pytest.fail(f"seed {seed}: {violation}")
    for event in ("complete", "crashes", "aborted", "resent", "restored"):
        assert happened[event] > 0, f"these seeds never saw: {event}"


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape(name):
    for seed in range(40):
        simulate(seed, shape_name=name)


@pytest.mark.parametrize(
    ("mutant", "shows"),
    [
        ("no alignment", "too many"),
        ("end holds barriers up", "dead-lock"),
        ("newer before held", "was processed after"),
        ("acks are kept back", "dead-lock|no end"),
        ("credit is ignored", "bytes in flight"),
        ("nothing is sent again", "dead-lock"),
    ],
)
def test_the_simulator_finds_deliberate_faults(mutant, shows):
    def find() -> None:
        for seed in range(200):
            simulate(seed, mutant=mutant)

    with pytest.raises(Violation, match=shows):
        find()
