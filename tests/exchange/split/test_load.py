"""What an executor measures of its keys."""

from __future__ import annotations

import random

import pytest

from penstock.errors import UsageError
from penstock.exchange.keys import key_group
from penstock.exchange.split.load import KeyLoad


def test_rates_per_group_and_the_hot_key():
    load = KeyLoad(stride=1)
    load.observe(["a"] * 30 + ["b"] * 10)
    report = load.report(2.0)
    assert report.groups == {key_group("a"): 15.0, key_group("b"): 5.0}
    assert report.hot is not None
    assert (report.hot.key, report.hot.least, report.hot_group) == ("a", 0.75, key_group("a"))
    assert load.report(2.0).groups == {}, "begun anew"


def test_a_sample_is_near_the_truth():
    rng = random.Random(3)
    load = KeyLoad(stride=16)
    for _ in range(200):
        load.observe(["hot" if rng.random() < 0.4 else rng.randrange(50_000) for _ in range(1024)])
    report = load.report(1.0)
    assert sum(report.groups.values()) == pytest.approx(200 * 1024, rel=0.01)
    assert report.groups[key_group("hot")] == pytest.approx(0.4 * 200 * 1024, rel=0.05)
    assert report.hot is not None
    assert report.hot.key == "hot"


def test_a_rhythm_of_the_stream_does_not_hide_keys():
    load = KeyLoad(stride=4)
    for _ in range(400):
        load.observe(["a", "b", "c", "d"] * 4)
    groups = load.report(1.0).groups
    assert len(groups) == 4
    assert max(groups.values()) < 1.5 * min(groups.values())


def test_an_empty_batch_and_an_idle_executor():
    load = KeyLoad()
    load.observe([])
    assert load.report(1.0) == ({}, None, None)
    with pytest.raises(UsageError, match="stride"):
        KeyLoad(0)
