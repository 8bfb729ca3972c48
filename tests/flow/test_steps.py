from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.flows import Kept, flow_of, outcome

import penstock as ps

K = ps.Keyed


class Reading(msgspec.Struct, frozen=True):
    sensor: str
    value: float


@dataclass(frozen=True)
class Pair:
    a: int
    b: int


def test_map_filter_flat_map():
    def steps(s):
        return s.map("inc", lambda x: x + 1).filter("even", lambda x: x % 2 == 0).flat_map("twice", lambda x: [x, -x])

    assert outcome(steps, [1, 2, 3]) == [2, -2, 4, -4]


def test_flat_map_takes_generators_and_builtins():
    def words(line):
        yield from line.split()

    assert outcome(lambda s: s.flat_map("w", words), ["a b", "", "c"]) == ["a", "b", "c"]
    assert outcome(lambda s: s.flat_map("w", str.split), ["a b", "", "c"]) == ["a", "b", "c"]


def test_filter_takes_any_truth():
    assert outcome(lambda s: s.filter("some", lambda x: x), [0, 1, "", "a", None, [1]]) == [1, "a", [1]]


def test_a_keyed_stream_shows_keyed_records_to_plain_steps():
    def steps(s):
        return s.key_by("parity", lambda x: x % 2).filter("ones", lambda r: r.key == 1).map("v", lambda r: r.value * 10)

    assert outcome(steps, [1, 2, 3]) == [10, 30]


def test_filter_and_branch_keep_keys():
    def steps(s):
        low, high = s.key_by("self", lambda x: x % 3).branch("low", lambda r: r.value < 3)
        return low.merge("again", high)

    assert sorted(outcome(steps, [1, 2, 3, 4, 5])) == [K(0, 3), K(1, 1), K(1, 4), K(2, 2), K(2, 5)]


def test_key_by_a_field():
    records = [{"id": "a", "v": 1}, {"id": "b", "v": 2}]
    assert outcome(lambda s: s.key_by("id", "id"), records) == [K("a", records[0]), K("b", records[1])]
    reading = Reading("s1", 2.0)
    assert outcome(lambda s: s.key_by("sensor", "sensor"), [reading]) == [K("s1", reading)]


def test_key_by_on_a_keyed_stream_keys_the_pairs():
    def steps(s):
        return s.key_by("word", lambda w: w).count("count").key_by("all", lambda r: "all")

    assert outcome(steps, ["x", "x"]) == [K("all", K("x", 1)), K("all", K("x", 2))]


def test_running_count():
    counted = outcome(lambda s: s.key_by("w", lambda w: w).count("n"), list("abaa"))
    assert counted == [K("a", 1), K("b", 1), K("a", 2), K("a", 3)]


def test_final_count_has_one_result_per_key():
    counted = outcome(lambda s: s.key_by("w", lambda w: w).count("n", emit="final"), list("abaa"), executors=2)
    assert sorted(counted) == [K("a", 3), K("b", 1)]


def test_final_results_are_not_late_for_a_window_after_them():
    def steps(s):
        return (
            s.stamp("time", "ts")
            .key_by("k", "k")
            .count("n", emit="final")
            .map("row", lambda r: {"ts": r.value, "k": r.key})
            .key_by("all", lambda r: "all")
            .window(ps.tumbling("1s"), on="ts")
            .aggregate("w", n=ps.count())
        )

    records = [{"k": k, "ts": t} for t, k in enumerate("aabbb")]
    (result,) = outcome(steps, records, executors=2)
    assert result["n"] == 2


def test_reduce():
    def steps(s):
        return s.key_by("k", lambda p: p[0]).map("v", lambda r: r.value).key_by("k2", lambda p: p[0])

    running = outcome(
        lambda s: steps(s).reduce("max", lambda a, b: b if b[1] > a[1] else a), [("a", 1), ("a", 3), ("a", 2)]
    )
    assert running == [K("a", ("a", 1)), K("a", ("a", 3)), K("a", ("a", 3))]
    final = outcome(lambda s: s.key_by("p", lambda x: x % 2).reduce("sum", lambda a, b: a + b, emit="final"), [1, 2, 3])
    assert sorted(final) == [K(0, 2), K(1, 4)]


def test_fold_emits_what_is_not_none():
    def every_second(state, value):
        state.append(value)
        return state, sum(state) if len(state) % 2 == 0 else None

    folded = outcome(lambda s: s.key_by("k", lambda x: x > 10).fold("f", [], every_second), [1, 2, 11, 3, 12, 4])
    assert folded == [K(False, 3), K(True, 23), K(False, 10)]


@pytest.mark.parametrize("initial", [[], list])
def test_fold_gives_every_key_its_own_state(initial):
    def collect(state, value):
        state.append(value)
        return state, len(state)

    assert outcome(lambda s: s.key_by("k", lambda x: x).fold("f", initial, collect), ["a", "b", "a"]) == [
        K("a", 1),
        K("b", 1),
        K("a", 2),
    ]


def test_distinct_without_keys():
    assert outcome(lambda s: s.distinct("d"), [3, 1, 3, 2, 1]) == [3, 1, 2]
    records = [{"id": 1, "v": "a"}, {"id": 1, "v": "b"}, {"id": 2, "v": "c"}]
    assert outcome(lambda s: s.distinct("d", by="id"), records) == [records[0], records[2]]


def test_distinct_per_key():
    pairs = [("a", 1), ("a", 1), ("b", 1), ("a", 2)]
    found = outcome(lambda s: s.key_by("k", lambda p: p[0]).distinct("d", by=lambda p: p[1]), pairs)
    assert found == [K("a", ("a", 1)), K("b", ("b", 1)), K("a", ("a", 2))]


@given(st.permutations([("x", 3), ("y", 3), ("z", 3), ("w", 1), ("v", 5)]))
def test_top_k_does_not_depend_on_the_order_of_arrival(pairs):
    top = outcome(lambda s: s.key_by("all", lambda p: "all").top_k("top", 3, by=lambda p: p[1]), list(pairs))
    assert top == [K("all", [("v", 5), ("x", 3), ("y", 3)])]


def test_top_k_updates_when_the_list_changes():
    lists = outcome(lambda s: s.key_by("all", lambda p: 0).top_k("top", 2, emit="update"), [1, 5, 0, 3])
    assert [r.value for r in lists] == [[1], [5, 1], [5, 3]]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9)), max_size=40), st.integers(1, 3))
def test_top_k_of_replaces_what_was_known_of_the_same_thing(updates, k):
    top = outcome(lambda s: s.key_by("all", lambda p: 0).top_k("top", k, by=lambda p: p[1], of=lambda p: p[0]), updates)
    latest = sorted(dict(updates).items(), key=lambda p: (-p[1], repr(p[0])))[:k]
    assert top == ([K(0, latest)] if updates else [])


def test_merge_and_branch():
    flow = ps.Flow("two")
    a, b = flow.source("a", ps.iterable([])), flow.source("b", ps.iterable([]))
    small, large = a.merge("both", b).branch("small", lambda x: x < 10)
    small.sink("low", Kept())
    large.sink("high", Kept())
    outputs = ps.testing.run(flow, {"a": [1, 20], "b": [30, 2]}).outputs
    assert {name: sorted(records) for name, records in outputs.items()} == {"low": [1, 2], "high": [20, 30]}


def test_event_time_waits_for_both_sides_of_a_branch():
    def steps(s):
        left, right = s.stamp("time", lambda r: r[0]).branch("side", lambda r: r[1])
        slow = right.filter("all", lambda r: True)
        return left.merge("again", slow).key_by("k", lambda r: 0).window(ps.tumbling("1s")).aggregate("n", n=ps.count())

    records = [(t * 100, t % 2) for t in range(30)]
    for batch in (1, 7, 100):
        result = ps.testing.run(flow_of(steps), {"in": records}, batch_records=batch)
        assert [r["n"] for r in result.outputs["out"]] == [10, 10, 10]
        assert result.counters["n.late"] == 0


def test_map_frames():
    import polars as pl

    def hot(frame):
        return frame.filter(pl.col("value") > 1).with_columns(double=pl.col("value") * 2)

    assert outcome(lambda s: s.map_frames("hot", hot), [{"value": 1}, {"value": 2}]) == [{"value": 2, "double": 4}]
    assert outcome(lambda s: s.map_frames("all", lambda f: f), [Reading("a", 1.0)]) == [{"sensor": "a", "value": 1.0}]
    assert outcome(lambda s: s.map_frames("all", lambda f: f), [Pair(1, 2)]) == [{"a": 1, "b": 2}]
    assert outcome(lambda s: s.map_frames("all", lambda f: f + 1), [1, 2]) == [{"value": 2}, {"value": 3}]


def test_frames_go_on_as_rows_through_a_shuffle():
    import polars as pl

    def steps(s):
        return s.map_frames("f", lambda f: f.filter(pl.col("v") > 0)).key_by("k", "k").count("n", emit="final")

    records = [{"k": "ab"[i % 2], "v": i} for i in range(11)]
    assert sorted(outcome(steps, records, executors=2)) == [K("a", 5), K("b", 5)]


def test_join_and_join_latest():
    flow = ps.Flow("joins")
    bids = flow.source("bids", ps.iterable([])).key_by("item", "item")
    items = flow.source("items", ps.iterable([])).key_by("id", "id")
    bids.join("pairs", items, within="1s", on="ts").map("p", lambda r: (r.key, r.value[0]["v"], r.value[1]["n"])).sink(
        "joined", Kept()
    )
    bids.join_latest("latest", items).map("l", lambda r: (r.key, r.value[1])).sink("latest-out", Kept())
    inputs = {
        "items": [{"id": 1, "n": "one", "ts": 0}],
        "bids": [{"item": 1, "v": 5, "ts": 900}, {"item": 1, "v": 6, "ts": 5000}],
    }
    outputs = ps.testing.run(flow, inputs, executors=2).outputs
    assert outputs["joined"] == [(1, 5, "one")]
    assert [found is None for _, found in outputs["latest-out"]] == [True, True]


def test_enrich_keeps_the_order():
    async def double(x):
        return x * 2

    assert outcome(lambda s: s.enrich("double", double), list(range(50)), batch_records=8) == list(range(0, 100, 2))


lines = st.lists(st.text("abc ", max_size=12), max_size=30)


@given(lines, st.integers(1, 4), st.integers(1, 3), st.integers(1, 7))
def test_parallel_runs_give_the_same_multiset(text, executors, partitions, batch):
    def steps(s):
        return s.flat_map("split", str.split).key_by("word", lambda w: w).count("count")

    one = outcome(steps, text)
    many = outcome(steps, text, executors=executors, partitions=partitions, batch_records=batch)
    assert Counter(one) == Counter(many)
    assert {r.key: r.value for r in one} == Counter(" ".join(text).split())
