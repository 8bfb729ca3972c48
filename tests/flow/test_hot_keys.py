"""The sketch of frequent keys."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.flow.hot_keys import HotKeys

BATCHES = st.lists(st.lists(st.integers(0, 30), max_size=40), max_size=12)


@given(BATCHES, st.integers(1, 8))
def test_bounds_hold(batches, size):
    sketch, exact = HotKeys(size), Counter[int]()
    for batch in batches:
        sketch.add(batch)
        exact.update(batch)
    total = sum(exact.values())
    found = {hot.key: hot for hot in sketch.top(100)}
    assert len(found) <= size
    for key, count in exact.items():
        if count > total / (size + 1):
            assert key in found
    for key, hot in found.items():
        assert hot.least <= exact[key] / total + 1e-9
        assert exact[key] / total <= hot.most + 1e-9
        assert hot.most - hot.least <= 1 / (size + 1) + 1e-9


@given(BATCHES, BATCHES)
def test_merged_sketches_keep_the_bounds(one, other):
    both = HotKeys(4)
    parts = [HotKeys(4), HotKeys(4)]
    for part, batches in zip(parts, (one, other), strict=True):
        for batch in batches:
            part.add(batch)
    both.merge(parts[0])
    both.merge(parts[1])
    exact = Counter(key for batch in (*one, *other) for key in batch)
    total = sum(exact.values())
    for hot in both.top(4):
        assert hot.least - 1e-9 <= exact[hot.key] / total <= hot.most + 1e-9


def test_a_skewed_stream_names_its_hot_key():
    rng = random.Random(1)
    sketch = HotKeys(16)
    stream = ["hot" if rng.random() < 0.3 else rng.randrange(100_000) for _ in range(50_000)]
    for first in range(0, len(stream), 1000):
        sketch.add(stream[first : first + 1000])
    hot = sketch.top()[0]
    assert hot.key == "hot"
    assert hot.least <= stream.count("hot") / len(stream) <= hot.most
    assert hot.least > 0.2


def test_the_past_fades():
    sketch = HotKeys()
    sketch.add(["old"] * 100)
    for _ in range(5):
        sketch.fade()
        sketch.add(["new"] * 10)
    assert [hot.key for hot in sketch.top(2)] == ["new", "old"]


def test_nothing_seen_names_nothing():
    assert HotKeys().top() == []


def test_impossible_sizes_are_refused():
    with pytest.raises(UsageError, match="can name none"):
        HotKeys(0)
    with pytest.raises(UsageError, match="cannot be left"):
        HotKeys().fade(2)
