"""When a stage is split or merged, and what goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.exchange.keys import even_routing
from penstock.flow.hot_keys import HotKey
from penstock.placement.splitting import Measured, Merge, Split, SplitPolicy, Splitting, Stay, Unsplittable, halves

ONE = even_routing(1)
FULL = Measured(0.9, 1.0, dict.fromkeys(range(256), 10.0))
CALM = Measured(0.0, 0.05)


def pressed(measured: Measured = FULL, policy: SplitPolicy | None = None, associative: bool = False) -> Splitting:
    """One executor, under pressure for three seconds."""
    splitting = Splitting(policy, associative=associative)
    for now in range(4):
        splitting.observe(now, {0: measured})
    return splitting


def test_lasting_pressure_splits_by_load():
    decision = pressed().decide(3, ONE, 1)
    assert isinstance(decision, Split)
    assert decision.giver == 0
    assert len(decision.groups) == 128
    assert decision.share == 0.5
    assert "90% full" in decision.reason


def test_pressure_has_to_last_without_a_break():
    splitting = Splitting()
    for now, measured in ((0, FULL), (1, FULL), (1.5, CALM), (2, FULL), (3, FULL)):
        splitting.observe(now, {0: measured})
    decision = splitting.decide(3, ONE, 1)
    assert isinstance(decision, Stay)
    assert "not for 2 s yet" in decision.reason
    assert isinstance(splitting.decide(4, ONE, 1), Split)


@pytest.mark.parametrize(
    ("policy", "slots", "why"),
    [(SplitPolicy(most=1), 5, "all of its 1 executors"), (SplitPolicy(), 0, "no slot is free")],
)
def test_the_cluster_is_the_limit(policy, slots, why):
    decision = pressed(policy=policy).decide(3, ONE, slots)
    assert isinstance(decision, Stay)
    assert why in decision.reason


def test_after_a_change_its_effect_has_to_show():
    splitting = pressed()
    splitting.changed(3)
    splitting.observe(4, {0: FULL})
    splitting.observe(7, {0: FULL})
    assert "4 s ago" in str(splitting.decide(7, ONE, 1))
    assert isinstance(splitting.decide(13, ONE, 1), Split)


def test_uneven_groups_are_balanced_by_what_was_measured():
    load = dict.fromkeys(range(64), 1.0) | {200: 32.0, 201: 16.0, 202: 16.0}
    decision = pressed(Measured(0.9, 1.0, load)).decide(3, ONE, 1)
    assert isinstance(decision, Split)
    assert sum(load.get(group, 0.0) for group in decision.groups) == 64


def test_a_hot_key_is_named():
    load = {7: 90.0, 8: 5.0, 9: 5.0}
    hot = Measured(0.9, 1.0, load, HotKey("sensor-7", 0.88, 0.9), 7)
    decision = pressed(hot).decide(3, ONE, 1)
    assert isinstance(decision, Unsplittable)
    assert "key 'sensor-7' has 90% of its load" in str(decision)
    assert "make the key finer" in decision.remedy
    decision = pressed(hot, associative=True).decide(3, ONE, 1)
    assert isinstance(decision, Unsplittable)
    assert "pre-combine" in decision.remedy


def test_several_keys_of_one_hot_group_are_not_blamed_on_one_of_them():
    decision = pressed(Measured(0.9, 1.0, {7: 90.0, 8: 10.0}, HotKey("a", 0.05, 0.06), 7)).decide(3, ONE, 1)
    assert isinstance(decision, Unsplittable)
    assert decision.key is None
    assert "key group 7 has 90%" in str(decision)


def test_an_executor_that_cannot_be_split_does_not_hide_one_that_can():
    splitting = Splitting()
    two = even_routing(2)
    hot = Measured(0.9, 1.0, {3: 100.0}, HotKey("a", 1.0, 1.0), 3)
    for now in range(4):
        splitting.observe(now, {0: hot, 1: FULL})
    decision = splitting.decide(3, two, 1)
    assert isinstance(decision, Split)
    assert decision.giver == 1
    assert set(decision.groups) <= set(range(128, 256))


def test_an_executor_of_one_group_is_not_split():
    table = [0] * 255 + [1]
    splitting = Splitting()
    for now in range(4):
        splitting.observe(now, {0: CALM, 1: FULL})
    assert isinstance(splitting.decide(3, table, 1), Unsplittable)


def test_long_idleness_merges_and_not_below_the_least():
    two = even_routing(2)
    splitting = Splitting(SplitPolicy(idle_for=20))
    for now in range(0, 25, 5):
        splitting.observe(now, {0: CALM, 1: CALM})
    decision = splitting.decide(20, two, 0)
    assert isinstance(decision, Merge)
    assert (decision.giver, decision.taker, decision.groups) == (1, 0, tuple(range(128, 256)))
    assert isinstance(splitting.decide(19, two, 0), Stay)
    kept = Splitting(SplitPolicy(idle_for=20, least=2))
    for now in range(0, 25, 5):
        kept.observe(now, {0: CALM, 1: CALM})
    assert isinstance(kept.decide(20, two, 0), Stay)


def test_two_half_busy_executors_are_not_merged():
    splitting = Splitting(SplitPolicy(idle_for=20))
    for now in range(0, 100, 5):
        splitting.observe(now, {0: Measured(0.0, 0.2), 1: Measured(0.0, 0.2)})
    assert isinstance(splitting.decide(95, even_routing(2), 0), Stay)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"full": 0}, "between 0 and 1"),
        ({"full": 1.5}, "between 0 and 1"),
        ({"relief": 0.4}, "between 0.5 and 1"),
        ({"merge_below": float("nan")}, "between 0 and 1"),
        ({"sustained": -1}, "0 or more"),
        ({"most": 256}, "most <= 255"),
        ({"least": 0}, "1 <= least"),
        ({"least": 3, "most": 2}, "least <= most"),
        ({"cooldown": 500}, "make idle_for longer"),
    ],
)
def test_bad_settings_say_what_to_change(settings, remedy):
    with pytest.raises(UsageError, match=r"cannot|would") as caught:
        SplitPolicy(**settings)
    assert remedy in str(caught.value)


@given(st.dictionaries(st.integers(0, 255), st.floats(0, 1e6), min_size=2))
def test_halves_are_as_even_as_the_greatest_group_allows(load):
    stays, goes = halves(load)
    assert sorted((*stays, *goes)) == sorted(load)
    assert len(goes) <= len(stays)
    a, b = sum(load[group] for group in stays), sum(load[group] for group in goes)
    assert abs(a - b) <= max(load.values()) + 1e-6 * (a + b)
