"""Aggregates: results, independence of order and merging, exactness, and the limits of the sketches."""

import datetime as dt
import itertools
import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import codec
from penstock.errors import FlowError
from penstock.flow import aggregates as agg
from penstock.flow.accumulators import rank
from penstock.flow.sketches import EXACT_DISTINCT, EXACT_VALUES

FLOATS = st.floats(min_value=-1e12, max_value=1e12, allow_nan=False)
NUMBERS = st.one_of(st.integers(-(10**12), 10**12), FLOATS)
ALL = {
    "count": agg.count(),
    "sum": agg.sum("v"),
    "mean": agg.mean("v"),
    "min": agg.min("v"),
    "max": agg.max("v"),
    "first": agg.first("v"),
    "last": agg.last("v"),
    "median": agg.quantile("v", 0.5),
    "distinct": agg.distinct_count("v"),
}


def whole(aggregate, values, times=None):
    return aggregate.result(aggregate.add(aggregate.init(), list(values), list(times or range(len(values)))))


def in_parts(aggregate, parts):
    """Each part added to an accumulator of its own, dumped, loaded and merged."""
    acc = aggregate.init()
    for part in parts:
        other = aggregate.add(aggregate.init(), [v for v, _ in part], [t for _, t in part])
        before = repr(other)
        acc = aggregate.merge(acc, other)
        assert repr(other) == before, "merge must leave its second argument alone"
        acc = aggregate.load(codec.loads(codec.dumps(aggregate.dump(acc))))
    return aggregate.result(acc)


@pytest.mark.parametrize("name", ALL)
@given(
    records=st.lists(st.tuples(NUMBERS, st.integers(0, 5))), cuts=st.lists(st.integers(0, 30)), seed=st.integers(0, 99)
)
def test_order_and_parts_make_no_difference(name, records, cuts, seed):
    aggregate = ALL[name]
    expected = whole(aggregate, [v for v, _ in records], [t for _, t in records])
    shuffled = random.Random(seed).sample(records, len(records))
    edges = [0, *sorted(cuts), len(records)]
    parts = [shuffled[a:b] for a, b in itertools.pairwise(edges)]
    assert in_parts(aggregate, parts) == expected


@given(st.lists(NUMBERS, min_size=1))
def test_sum_and_mean_are_the_exact_ones_rounded_once(values):
    exact = sum(map(Fraction, values))
    got = whole(agg.sum(), values)
    assert got == (float(exact) if any(type(v) is float for v in values) else exact)
    if all(type(v) is int for v in values):
        assert whole(agg.mean(), values) == sum(values) / len(values)
    else:
        assert whole(agg.mean(), values) == float(exact) / len(values)


def test_sums_where_plain_addition_fails():
    assert whole(agg.sum(), [1e16, 1.0, -1e16]) == 1.0
    assert whole(agg.sum(), [0.1] * 10) == 1.0
    assert whole(agg.sum(), [2**70, 1]) == 2**70 + 1
    assert whole(agg.sum(), [2**60 + 1, 0.5, -(2**60)]) == 1.5
    assert whole(agg.sum(), []) == 0
    assert whole(agg.sum(), [math.inf, 1.0]) == math.inf
    assert math.isnan(whole(agg.sum(), [math.inf, -math.inf]))
    assert whole(agg.sum(), [10**400, 1.0]) == math.inf
    assert whole(agg.mean(), []) is None


def test_min_and_max_take_mixed_kinds_in_one_order():
    values = ["b", 3, "a", 2.5]
    assert whole(agg.min(), values) == 2.5
    assert whole(agg.max(), values) == "b"
    naive, zoned = dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, 1, tzinfo=dt.UTC)
    assert whole(agg.max(), [naive, zoned]) == zoned
    assert whole(agg.min(), []) is None


def test_first_and_last_go_by_event_time_and_break_ties_by_value():
    assert whole(agg.first(), ["x", "b", "a"], [5, 3, 3]) == "a"
    assert whole(agg.last(), ["x", "b", "c", "a"], [1, 7, 7, 3]) == "c"
    assert whole(agg.last(), [9, 10], [7, 7]) == 10, "numbers are compared as numbers"
    assert whole(agg.last(), [{"v": 1}, {"v": 2}], [1, 1]) == {"v": 2}
    assert whole(agg.first(), []) is None


@given(
    st.lists(
        st.one_of(st.integers(), st.text(), st.none(), st.binary(), st.tuples(st.integers(), st.text()), st.datetimes())
    )
)
def test_rank_orders_everything(values):
    assert sorted(values, key=rank) == sorted(values, key=rank)


@given(st.lists(NUMBERS, min_size=1, max_size=EXACT_VALUES), st.floats(0, 1))
def test_small_quantiles_are_exact(values, q):
    assert whole(agg.quantile("v", q), values) == sorted(values)[math.floor(q * (len(values) - 1))]


@pytest.mark.parametrize("q", [0, 0.01, 0.25, 0.5, 0.9, 0.999, 1])
@pytest.mark.parametrize("shape", ["lognormal", "both signs", "with zeros", "tiny and huge"])
def test_sketched_quantiles_are_within_one_per_cent(shape, q):
    source = random.Random(7)
    values = {
        "lognormal": lambda: source.lognormvariate(3, 2),
        "both signs": lambda: source.gauss(0, 100),
        "with zeros": lambda: source.choice([0, 0, -3, 5.5]),
        "tiny and huge": lambda: 10 ** source.uniform(-8, 8),
    }[shape]
    data = [values() for _ in range(5000)]
    parts = [[(v, 0) for v in data[i : i + 700]] for i in range(0, 5000, 700)]
    exact = sorted(data)[math.floor(q * 4999)]
    assert whole(agg.quantile("v", q), data) == in_parts(agg.quantile("v", q), parts)
    assert whole(agg.quantile("v", q), data) == pytest.approx(exact, rel=0.0101, abs=0)


def test_the_sketch_is_bounded_whatever_comes():
    aggregate = agg.quantile("v", 0.5)
    spread = [10.0**e for e in range(-300, 300)] * 2
    acc = aggregate.add(aggregate.init(), spread, ())
    other = aggregate.add(aggregate.init(), spread[::-1], ())
    assert len(acc["pos"]) <= 2048
    assert acc["pos"] == other["pos"]


@pytest.mark.parametrize("n", [0, 1, EXACT_DISTINCT])
def test_few_distinct_values_are_counted_exactly(n):
    assert whole(agg.distinct_count(), [f"user {i}" for i in range(n)] * 3) == n


@pytest.mark.parametrize("n", [EXACT_DISTINCT + 1, 3000, 12_000, 60_000])
def test_many_distinct_values_are_counted_within_six_per_cent(n):
    aggregate, values = agg.distinct_count(), [f"user {i}" for i in range(n)]
    parts = [[(v, 0) for v in values[i : i + 5000]] for i in range(0, n, 5000)]
    assert whole(aggregate, values) == in_parts(aggregate, parts) == pytest.approx(n, rel=0.06)
    assert len(aggregate.dump(aggregate.add(aggregate.init(), values, ()))) == 4096


def test_equal_numbers_are_one_value():
    assert whole(agg.distinct_count(), [1, 1.0, True, "1", b"1", None, (1,), 1.5]) == 6


@pytest.mark.parametrize("q", [-0.1, 1.1, "0.5", None, True])
def test_a_quantile_out_of_range_is_refused(q):
    with pytest.raises(FlowError, match="between 0 and 1"):
        agg.quantile("v", q)
