from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.flows import Endless, Kept

import penstock as ps
from penstock.testing import of_program


class WordCount(ps.MapReduce):
    def map(self, record):
        for word in record.split():
            yield word, 1

    def combine(self, key, values):
        return sum(values)

    def reduce(self, key, values):
        return sum(values)


class Greatest(ps.MapReduce):
    """Without combine; spoils the list that it is given."""

    def map(self, record):
        return [(record % 3, record)]

    def reduce(self, key, values):
        values.sort()
        best = values[-1]
        values.clear()
        return best


class Picky(ps.MapReduce):
    def map(self, record):
        yield record, record
        if record == "bad":
            raise ValueError("bad record")

    def reduce(self, key, values):
        if key == "worse":
            raise ValueError("bad key")
        return len(values)


lines = st.lists(st.text("abc ", max_size=12), max_size=30)
batches = st.integers(1, 9)


@given(lines, st.integers(1, 3), batches)
def test_bounded_input_ends_with_one_result_per_key(text, executors, batch):
    run = ps.testing.run(
        WordCount.flow(ps.iterable([]), Kept()), {"input": text}, executors=executors, batch_records=batch
    )
    results = run.outputs["output"]
    assert dict(results) == Counter(" ".join(text).split())
    assert len(results) == len({key for key, _ in results})


@given(lines, batches)
def test_the_last_updates_of_a_stream_equal_the_bounded_result(text, batch):
    streamed = ps.testing.run(WordCount.flow(Endless(), Kept()), {"input": text}, batch_records=batch)
    assert dict(streamed.outputs["output"]) == of_program(WordCount, text)


@given(st.lists(st.integers(-50, 50), max_size=40), st.integers(1, 3), batches)
def test_without_combine(numbers, executors, batch):
    expected = {k: max(n for n in numbers if n % 3 == k) for k in {n % 3 for n in numbers}}
    assert of_program(Greatest, numbers, executors=executors, batch_records=batch) == expected
    streamed = ps.testing.run(Greatest.flow(Endless(), Kept()), {"input": numbers}, batch_records=batch)
    assert dict(streamed.outputs["output"]) == expected


def test_one_update_per_changed_key_and_batch():
    run = ps.testing.run(WordCount.flow(Endless(), Kept()), {"input": ["a a b", "a"]}, batch_records=1)
    assert run.outputs["output"] == [("a", 2), ("b", 1), ("a", 3)]


def test_with_combine_the_state_is_one_value_per_key():
    run = ps.testing.run(WordCount.flow(ps.iterable([]), Kept()), {"input": ["a a", "a b"]}, batch_records=1)
    assert run.state == {"reduce": {"a": [3], "b": [1]}}


def test_state_survives_a_crash():
    with ps.testing.Harness(WordCount.flow(Endless(), Kept())) as harness:
        harness.feed("input", ["a b"])
        harness.checkpoint()
        harness.crash_at("input", 2)
        with pytest.raises(ps.testing.Crash):
            harness.feed("input", ["a", "a", "b"])
    with harness.restart(executors=2) as again:
        assert dict(again.outputs["output"]) == {"a": 3, "b": 2}


def test_a_failing_record_or_key_is_skipped_whole():
    flow = Picky.flow(ps.iterable([]), Kept(), on_error="skip")
    run = ps.testing.run(flow, {"input": ["good", "bad", "worse", "good"]})
    assert run.outputs["output"] == [("good", 2)]
    assert run.counters == {"map.skipped": 1, "reduce.skipped": 1}


def test_errors_name_the_step_and_the_line():
    with pytest.raises(ps.StepError, match="bad key") as caught:
        of_program(Picky, ["worse"])
    assert caught.value.step == "reduce"
    assert "test_mapreduce.py" in str(caught.value)


@pytest.mark.parametrize("pairs", [[1], ["ab"], [("a", 1, 2)], [(["a"], 1)]])
def test_map_must_give_pairs_with_hashable_keys(pairs):
    class Wrong(WordCount):
        def map(self, record):
            return pairs

    with pytest.raises(ps.StepError, match=r"\(key, value\)|unhashable") as caught:
        of_program(Wrong, ["x"])
    assert caught.value.step == "map"


def test_as_a_step_of_a_flow():
    flow = ps.Flow("tops")
    (
        flow.source("lines", ps.iterable([]))
        .map_reduce("words", WordCount)
        .key_by("all", lambda r: "all")
        .top_k("top", 2, by=lambda r: r.value, of=lambda r: r.key)
        .sink("out", Kept())
    )
    (top,) = ps.testing.run(flow, {"lines": ["a b a", "c a c"]}, executors=2).outputs["out"]
    assert [tuple(r) for r in top.value] == [("a", 3), ("c", 2)]


def test_the_flow_has_the_name_of_the_class():
    assert WordCount.flow(ps.iterable([]), Kept()).build().name == "WordCount"
    assert WordCount.flow(ps.iterable([]), Kept(), name="wc", executors=2).build().executors == 2
