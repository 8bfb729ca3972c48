from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.flows import Kept, flow_of, outcome

import penstock as ps
from penstock.flow.failure import RECORD_CHARS, shorten


def fail_on_three(x):
    if x == 3:
        raise ValueError("three is not wanted")  # the author's own line
    return x


def keyed(s):
    return s.key_by("k", lambda x: x % 2)


def many(x):
    yield x
    yield fail_on_three(x)


STEPS = {
    "map": (lambda s: s.map("step", fail_on_three), [1, 2, 4]),
    "filter": (lambda s: s.filter("step", fail_on_three), [1, 2, 4]),
    "flat_map": (lambda s: s.flat_map("step", many), [1, 1, 2, 2, 4, 4]),
    "key_by": (lambda s: s.key_by("step", fail_on_three).map("v", lambda r: r.value), [1, 2, 4]),
    "branch": (lambda s: (lambda pair: pair[0].merge("m", pair[1]))(s.branch("step", fail_on_three)), [1, 2, 4]),
    "reduce": (
        lambda s: keyed(s).reduce("step", lambda a, b: a + fail_on_three(b)).map("v", lambda r: r.value),
        [1, 2, 6],
    ),
    "fold": (
        lambda s: keyed(s).fold("step", 0, lambda a, b: (a + fail_on_three(b), b)).map("v", lambda r: r.value),
        [1, 2, 4],
    ),
    "top_k": (lambda s: keyed(s).top_k("step", 9, by=fail_on_three).flat_map("v", lambda r: r.value), [1, 4, 2]),
    "distinct": (lambda s: keyed(s).distinct("step", by=fail_on_three).map("v", lambda r: r.value), [1, 2, 4]),
}


@pytest.mark.parametrize("kind", STEPS)
def test_fail_names_step_record_and_the_authors_line(kind):
    steps, _ = STEPS[kind]
    with pytest.raises(ps.StepError) as caught:
        outcome(steps, [1, 2, 3, 4])
    error = caught.value
    assert error.step == "step"
    assert error.record in ("3", "Keyed(key=1, value=3)")
    assert "ValueError: three is not wanted" in str(error)
    assert error.site.startswith("test_failure.py:")
    assert "# the author's own line" in str(error)


@pytest.mark.parametrize("kind", STEPS)
def test_skip_leaves_out_exactly_the_failing_record(kind):
    steps, expected = STEPS[kind]
    for batch in (1, 2, 100):
        run = ps.testing.run(flow_of(steps, on_error="skip"), {"in": [1, 2, 3, 4]}, batch_records=batch)
        assert sorted(run.outputs["out"]) == sorted(expected)
        assert run.counters == {"step.skipped": 1}


@pytest.mark.parametrize("kind", STEPS)
def test_dead_letters_describe_the_record(kind):
    steps, expected = STEPS[kind]
    run = ps.testing.run(flow_of(steps, on_error=Kept()), {"in": [1, 2, 3, 4]})
    assert sorted(run.outputs["out"]) == sorted(expected)
    (letter,) = run.dead_letters
    assert letter["step"] == "step"
    assert letter["record"] in (3, "Keyed(key=1, value=3)")
    assert letter["error"] == "ValueError: three is not wanted"
    assert letter["site"].startswith("test_failure.py:")
    assert run.counters["step.dead_letter"] == 1
    json.dumps(letter)


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 10))
def test_skipping_equals_removing_the_failing_records_first(numbers, batch):
    def steps(s):
        return s.flat_map("step", many).key_by("p", lambda x: x % 2).fold("sum", 0, lambda a, x: (a + x, a + x))

    good = [x for x in numbers if x != 3]
    assert outcome(steps, numbers, on_error="skip", batch_records=batch) == outcome(steps, good)


def test_an_error_in_a_builtin_gives_the_line_of_the_step():
    with pytest.raises(ps.StepError, match=r"invalid literal") as caught:
        outcome(lambda s: s.map("number", int), ["1", "x"])
    assert caught.value.site.startswith("test_failure.py:")
    assert caught.value.record == "'x'"


def test_an_error_inside_the_standard_library_gives_the_authors_line():
    def parse(text):
        return json.loads(text)  # here

    with pytest.raises(ps.StepError, match="# here"):
        outcome(lambda s: s.map("parse", parse), ["{"])


def test_long_records_are_shortened_and_a_broken_repr_does_no_harm():
    class Broken:
        def __repr__(self):
            raise RuntimeError

    assert len(shorten("x" * 10_000)) == RECORD_CHARS
    assert "Broken" in shorten(Broken())


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (lambda s: s.flat_map("step", lambda x: str(x)), "use .map"),
        (lambda s: s.flat_map("step", lambda x: None), "return a list"),
        (lambda s: s.flat_map("step", lambda x: {"a": 1}), "use .map"),
        (lambda s: s.flat_map("step", lambda x: 1), "not iterable"),
        (lambda s: s.key_by("step", lambda x: [x]), "unhashable type: 'list'"),
        (lambda s: s.key_by("step", "name"), "no field"),
        (lambda s: keyed(s).fold("step", 0, lambda a, b: a), r"must return \(state, output\)"),
        (lambda s: keyed(s).fold("step", 0, lambda a, b: (1, 2, 3)), r"must return \(state, output\)"),
        (lambda s: s.map_frames("step", lambda f: 1), "must return a polars.DataFrame"),
        (lambda s: s.map("step", lambda x: next(iter(()))), "StopIteration"),
    ],
)
def test_what_a_function_must_return_is_said(steps, message):
    with pytest.raises(ps.StepError, match=message) as caught:
        outcome(steps, [{"v": 1}] if "field" in message else [1])
    assert caught.value.step == "step"


def test_unhashable_keys_are_skipped_one_by_one():
    def steps(s):
        return s.key_by("k", lambda x: [x] if x == 2 else x).count("n")

    assert [r.key for r in outcome(steps, [1, 2, 3], on_error="skip")] == [1, 3]


def test_an_unhashable_key_among_good_ones_is_found_also_when_the_record_is_its_own_key():
    def steps(s):
        return s.key_by("k", lambda x: x).count("n")

    records = ["a", ["b"], "a", ["c"]]
    assert outcome(steps, records, on_error="skip") == [("a", 1), ("a", 2)]
    with pytest.raises(ps.StepError, match=r"unhashable type: 'list'[\s\S]*\['b'\]"):
        outcome(steps, records)


def daily(s):
    return s.key_by("k", lambda r: 0).window(ps.tumbling("1d"), on="time").aggregate("day", n=ps.count())


def test_an_error_of_a_hidden_step_names_the_step_that_the_author_wrote():
    with pytest.raises(
        ps.StepError, match=r"^step 'day' \(its event time, on='time'\): ValueError: .*ISO 8601"
    ) as caught:
        outcome(daily, [{"time": "soon"}])
    assert caught.value.step == "day"
    with pytest.raises(ps.StepError, match=r"^step 'd' \(its key\): ZeroDivisionError"):
        outcome(lambda s: s.distinct("d", by=lambda x: 1 // x), [0])
    run = ps.testing.run(flow_of(daily, on_error=Kept()), {"in": [{"time": "soon"}]})
    assert [letter["step"] for letter in run.dead_letters] == ["day"]


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (b"nope", "nope"),
        ("é".encode(), "é"),
        (b"\xff", "b'\\xff'"),
        ({"topic": "t", "raw": [b"x"]}, {"topic": "t", "raw": ["x"]}),
        ({"raw": b"\xff"}, "{'raw': b'\\xff'}"),
    ],
)
def test_bytes_that_are_text_are_text_in_dead_letters(record, told):
    run = ps.testing.run(flow_of(lambda s: s.map("m", lambda r: 1 // 0), on_error=Kept()), {"in": [record]})
    assert [letter["record"] for letter in run.dead_letters] == [told]
