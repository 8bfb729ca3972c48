"""Stamping: times, watermarks per lane, and records that cannot be stamped."""

import datetime as dt

import polars as pl
import pytest
from tests.flow.tape import start

from penstock.flow.batch import END_TIME, IDLE, MIN_TIME, Columns, Keyed, Rows
from penstock.flow.graph import Input, Partitioning
from penstock.flow.steps.stamp import Stamp


def stamp(on="ts"):
    return Stamp("time", (Input("in"),), "flow.py:3", on)


def test_times_and_the_greatest_of_each_lane_as_its_watermark():
    operator, out = start(stamp())
    operator.advance(0, 1, MIN_TIME)
    operator.advance(0, 2, MIN_TIME)
    operator.process(0, Rows([{"ts": 5}, {"ts": 3}], ["a", "b"], None, 1))
    operator.process(0, Rows([{"ts": 1}], ["a"], None, 2))
    operator.process(0, Rows([{"ts": 4}], ["a"], None, 1))
    assert [batch.times for batch in out.batches()] == [[5, 3], [1], [4]]
    assert [batch.keys for batch in out.batches()] == [["a", "b"], ["a"], ["a"]]
    assert [entry[1:] for entry in out.log if entry[0] == "advance"] == [(1, MIN_TIME), (2, MIN_TIME), (1, 5), (2, 1)]


def test_markers_pass_and_other_watermarks_do_not():
    operator, out = start(stamp())
    for watermark in (MIN_TIME, 77, IDLE, END_TIME):
        operator.advance(0, 1, watermark)
    assert out.watermarks() == [MIN_TIME, IDLE, END_TIME]


def test_a_lane_that_was_idle_speaks_again_even_if_time_stood_still():
    operator, out = start(stamp())
    operator.process(0, Rows([{"ts": 9}]))
    operator.advance(0, 0, IDLE)
    operator.process(0, Rows([{"ts": 8}]))
    assert out.watermarks() == [9, IDLE, 9]


class Event:
    def __init__(self, ts):
        self.ts = ts


@pytest.mark.parametrize(
    ("on", "values", "times"),
    [
        ("ts", [Event(1), Event(2)], [1, 2]),
        ("ts", [{"ts": 1}, Event(2.7)], [1, 2]),
        ("ts", [{"ts": "1970-01-01T00:00:01"}, {"ts": "1970-01-01T00:00:02+00:00"}], [1000, 2000]),
        (lambda value: value * 10, [1, 2], [10, 20]),
        (lambda value: dt.datetime(1970, 1, value), [2], [86_400_000]),
    ],
)
def test_fields_attributes_and_functions(on, values, times):
    operator, out = start(stamp(on))
    operator.process(0, Rows(values))
    assert out.batches()[0].times == times


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"time": 1, "v": 2}, "no field 'ts' in the record; it has: time, v"),
        ({"ts": "soon"}, "'soon' is not an ISO 8601 time"),
        ({"ts": None}, "not NoneType"),
        ({"ts": 2**61}, "too large"),
        (3, "the record is of type int"),
    ],
)
def test_a_record_without_a_time_meets_the_policy(value, says):
    operator, _ = start(stamp())
    with pytest.raises((LookupError, ValueError, TypeError), match=says):
        operator.process(0, Rows([{"ts": 1}, value]))
    operator, out = start(stamp(), on_error="skip")
    operator.process(0, Rows([{"ts": 1}, value, {"ts": 3}], ["a", "b", "c"]))
    assert out.records() == [Keyed("a", {"ts": 1}), Keyed("c", {"ts": 3})]
    assert out.batches()[0].times == [1, 3]
    assert operator.ctx.counters["skipped"] == 1


def test_a_batch_of_which_nothing_is_left_is_not_sent():
    operator, out = start(stamp(), on_error="skip")
    operator.process(0, Rows([{"ts": None}]))
    assert out.log == []


def test_a_column_of_integers_stays_columnar():
    operator, out = start(stamp())
    frame = pl.DataFrame({"ts": [4, 9, 2], "k": ["a", "b", "a"]})
    operator.process(0, Columns(frame, "k", None, 3))
    sent = out.log[0][1]
    assert isinstance(sent, Columns)
    assert (sent.key, sent.time, sent.lane) == ("k", "ts", 3)
    assert out.log[1] == ("advance", 3, 9)


@pytest.mark.parametrize(
    "column",
    [[dt.datetime(1970, 1, 1, 0, 0, 1)], ["1970-01-01T00:00:01"], [1000.5]],
)
def test_other_columns_become_rows_without_a_trace_in_the_records(column):
    operator, out = start(stamp())
    operator.process(0, Columns(pl.DataFrame({"ts": column, "k": ["a"]}), "k"))
    assert out.batches()[0].times == [1000]
    assert out.records() == [Keyed("a", {"ts": column[0], "k": "a"})]


def test_nulls_in_a_column_meet_the_policy():
    operator, out = start(stamp(), on_error="skip")
    operator.process(0, Columns(pl.DataFrame({"ts": [1, None]})))
    assert out.values() == [{"ts": 1}]
    assert operator.ctx.counters["skipped"] == 1


def test_partitioning_is_kept():
    assert stamp().partitioning((Partitioning.PARTITIONED,)) is Partitioning.PARTITIONED
