"""Windows against brute force over disordered lanes; late records; snapshots; columns; errors."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.streams import brute_force, drive, streams
from tests.flow.tape import restart, rows, start

from penstock.errors import FlowError
from penstock.flow import aggregates as agg
from penstock.flow.batch import END_TIME, IDLE, MIN_TIME, Columns, Rows
from penstock.flow.graph import Input, Partitioning
from penstock.flow.steps.stamp import Stamp
from penstock.flow.steps.window import WindowAggregate
from penstock.flow.windows import Session, Sliding, Tumbling, session, sliding, tumbling

WINDOWS = st.one_of(
    st.integers(1, 120).map(lambda size: Tumbling(size, size)),
    st.tuples(st.integers(1, 40), st.integers(0, 80)).map(lambda w: Sliding(w[0] + w[1], w[0])),
    st.integers(1, 60).map(Session),
)
AGGREGATES = {
    "several": (
        ("n", agg.count()),
        ("total", agg.sum("v")),
        ("low", agg.min("v")),
        ("first", agg.first("v")),
        ("last", agg.last("v")),
        ("odd", agg.sum(lambda record: record["v"] % 2)),
    ),
    "one field": (("n", agg.count()), ("total", agg.sum("v")), ("low", agg.min("v"))),
    "count": (("n", agg.count()),),
}


COUNT = (("n", agg.count()),)


def window_step(window, aggregates=COUNT, late_ms=0):
    return WindowAggregate("stats", (Input("in"),), "flow.py:9", window, aggregates, late_ms)


def expected(found, names):
    """The records that windows with the `AGGREGATES` called `names` give."""
    results = []
    for (key, begin, end), members in found.items():
        values = [value for _, value in members]
        of_first = [value for time, value in members if time == members[0][0]]
        of_last = [value for time, value in members if time == members[-1][0]]
        full = {"n": len(values), "total": sum(values), "low": min(values), "first": min(of_first)}
        full |= {"last": max(of_last), "odd": sum(value % 2 for value in values)}
        results.append({"key": key, "start": begin, "end": end, **{name: full[name] for name in names}})
    return results


def as_multiset(records):
    return Counter(tuple(record.items()) for record in records)


def sent(tapes):
    return [record for tape in tapes for record in tape.records()]


@pytest.mark.parametrize("kind", AGGREGATES)
@given(batches=streams(late_ms=50), window=WINDOWS)
def test_within_the_lateness_the_result_is_that_of_the_whole_batch(kind, batches, window):
    step = window_step(window, AGGREGATES[kind], late_ms=50)
    mains, lates, operator = drive(Stamp("time", (), "", "t"), step, batches)
    names = [name for name, _ in AGGREGATES[kind]]
    assert as_multiset(sent(mains)) == as_multiset(expected(brute_force(window, batches), names))
    assert sent(lates) == []
    assert operator.state == {}
    assert mains[0].late_for_a_next_step() == []
    assert mains[0].watermarks()[-1] == END_TIME
    times = [time for batch in mains[0].batches() for time in batch.times]
    assert times == sorted(times)


@given(batches=streams(late_ms=50), window=WINDOWS, data=st.data())
def test_a_restart_from_a_snapshot_changes_nothing(batches, window, data):
    step = window_step(window, AGGREGATES["several"], late_ms=50)
    stamp = Stamp("time", (), "", "t")
    at = data.draw(st.integers(0, len(batches) - 1))
    plain_mains, _, _ = drive(stamp, step, batches)
    mains, lates, operator = drive(stamp, step, batches, restart_at=at)
    assert as_multiset(sent(mains)) == as_multiset(sent(plain_mains))
    assert sent(lates) == []
    assert operator.state == {}


@given(batches=streams(late_ms=80), size=st.integers(1, 100), data=st.data())
def test_a_restart_neither_loses_late_records_nor_emits_a_window_twice(batches, size, data):
    at = data.draw(st.integers(0, len(batches) - 1))
    mains, lates, _ = drive(Stamp("time", (), "", "t"), window_step(Tumbling(size, size)), batches, restart_at=at)
    counted = sum(record["n"] for record in sent(mains))
    assert counted + len(sent(lates)) == sum(len(records) for _, records in batches)
    windows = [(record["key"], record["start"]) for record in sent(mains)]
    assert len(windows) == len(set(windows))


@given(batches=streams(late_ms=80), size=st.integers(1, 100))
def test_every_record_is_counted_or_late(batches, size):
    mains, lates, operator = drive(Stamp("time", (), "", "t"), window_step(Tumbling(size, size)), batches)
    late = sent(lates)
    assert sum(record["n"] for record in sent(mains)) + len(late) == sum(len(records) for _, records in batches)
    assert operator.ctx.counters["late"] == len(late)


@given(batches=streams(late_ms=30), window=WINDOWS)
def test_columns_give_what_rows_give(batches, window):
    def frame(lane, records):
        columns = {"t": [t for _, t, _ in records], "v": [v for _, _, v in records], "k": [k for k, _, _ in records]}
        return Columns(pl.DataFrame(columns), "k", None, lane)

    step = window_step(window, (*AGGREGATES["one field"], ("mean", agg.mean("v")), ("top", agg.max("v"))), late_ms=10)
    stamp = Stamp("time", (), "", "t")
    by_rows, late_rows, _ = drive(stamp, step, batches)
    by_columns, late_columns, _ = drive(stamp, step, batches, make=frame)
    assert as_multiset(sent(by_columns)) == as_multiset(sent(by_rows))
    assert Counter((r["t"], r["v"]) for r in sent(late_columns)) == Counter((r["t"], r["v"]) for r in sent(late_rows))


def test_floats_nulls_and_wide_integers_agree_between_rows_and_columns():
    frame = pl.DataFrame(
        {
            "k": ["a", "a", "b", "a", "b"],
            "t": [1, 2, 3, 4, 5],
            "f": [1.5, float("nan"), None, 2.25, None],
            "i": [2**62, 2**62, 2**62, None, 7],
            "s": ["x", None, "y", "w", "z"],
        }
    )
    aggregates = (
        ("n", agg.count()),
        ("f", agg.sum("f")),
        ("m", agg.mean("f")),
        ("i", agg.sum("i")),
        ("s", agg.min("s")),
    )
    results = []
    for batch in (Columns(frame, "k", "t"), Columns(frame, "k", "t").rows()):
        operator, out, _ = start(window_step(tumbling(1), aggregates))
        operator.process(0, batch)
        operator.finish()
        results.append({record["key"]: record for record in out.records()})
    assert results[0] == results[1]
    assert results[0]["a"] == {"key": "a", "start": 0, "end": 1000, "n": 3, "f": 3.75, "m": 1.875, "i": 2**63, "s": "w"}
    assert results[0]["b"] == {"key": "b", "start": 0, "end": 1000, "n": 2, "f": 0, "m": None, "i": 2**62 + 7, "s": "y"}


def test_a_window_waits_for_the_slowest_lane_and_for_the_lateness():
    operator, out, _ = start(window_step(Tumbling(10, 10), late_ms=5))
    operator.advance(0, 1, MIN_TIME)
    operator.advance(0, 2, MIN_TIME)
    operator.process(0, rows(("a", 3, None), ("a", 9, None), lane=1))
    operator.advance(0, 1, 100)
    operator.advance(0, 2, 14)
    assert out.records() == []
    operator.advance(0, 2, 15)
    assert out.records() == [{"key": "a", "start": 0, "end": 10, "n": 2}]
    assert out.batches()[0].times == [9]
    assert out.watermarks() == [MIN_TIME, 9, 10]


def test_an_idle_lane_does_not_hold_windows_open():
    operator, out, late = start(window_step(Tumbling(10, 10)))
    operator.advance(0, 1, MIN_TIME)
    operator.advance(0, 2, MIN_TIME)
    operator.process(0, rows(("a", 3, None), lane=1))
    operator.advance(0, 1, 12)
    operator.advance(0, 2, 4)
    assert out.records() == []
    operator.advance(0, 2, IDLE)
    assert len(out.records()) == 1
    operator.process(0, rows(("a", 5, "x"), ("a", 11, "y"), lane=2))
    assert late.records() == ["x"]
    operator.advance(0, 1, IDLE)
    operator.advance(0, 2, IDLE)
    assert out.watermarks()[-1] == IDLE


def test_late_records_go_out_as_they_were_before_key_by_and_are_counted():
    operator, out, late = start(window_step(Tumbling(10, 10)))
    operator.advance(0, 0, 20)
    operator.process(0, rows(("a", 19, {"x": 1}), ("b", 25, {"x": 2}), ("c", -7, {"x": 3})))
    assert late.records() == [{"x": 1}, {"x": 3}]
    assert late.batches()[0].times == [19, -7]
    assert operator.ctx.counters["late"] == 2
    operator.advance(0, 0, END_TIME)
    assert [record["key"] for record in out.records()] == ["b"]
    assert late.watermarks() == [END_TIME]


def test_a_record_late_for_some_windows_still_counts_in_the_others():
    operator, out, late = start(window_step(Sliding(10, 5)))
    operator.advance(0, 0, 11)
    operator.process(0, rows(("a", 7, None)))
    operator.finish()
    assert [(r["start"], r["n"]) for r in out.records()] == [(5, 1)]
    assert late.records() == []


def test_sessions_merge_when_a_late_record_bridges_them():
    operator, out, _ = start(window_step(Session(10), (("n", agg.count()), ("all", agg.sum())), late_ms=100))
    operator.process(0, rows(("a", 0, 1), ("a", 30, 2), ("a", 15, 4)))
    operator.process(0, rows(("a", 22, 8)))
    operator.process(0, rows(("a", 9, 16)))
    operator.finish()
    assert out.records() == [{"key": "a", "start": 0, "end": 40, "n": 5, "all": 31}]


def test_a_record_at_exactly_the_gap_belongs_to_the_session_and_one_beyond_does_not():
    operator, out, late = start(window_step(Session(10)))
    operator.process(0, rows(("a", 0, None), ("b", 0, None)))
    operator.advance(0, 0, 10)
    assert out.records() == []
    operator.process(0, rows(("a", 10, None), ("b", 11, None)))
    operator.advance(0, 0, 11)
    assert out.records() == [{"key": "b", "start": 0, "end": 10, "n": 1}]
    operator.process(0, rows(("b", 0, "lost"), ("a", 2, None)))
    assert late.records() == ["lost"], "a's joins the open session"
    operator.finish()
    ends = {(r["key"], r["start"], r["end"], r["n"]) for r in out.records()}
    assert ends == {("b", 0, 10, 1), ("b", 11, 21, 1), ("a", 0, 20, 3)}


def test_what_was_closed_before_a_snapshot_stays_closed_after_it():
    step = window_step(Tumbling(10, 10))
    operator, out, _ = start(step)
    operator.process(0, rows(("a", 3, None)))
    operator.advance(0, 0, 20)
    assert len(out.records()) == 1
    operator, out, late = restart(step, operator)
    operator.advance(0, 0, MIN_TIME)
    operator.process(0, rows(("a", 4, None), ("a", 24, None)))
    assert len(late.records()) == 1
    operator.finish()
    assert [r["start"] for r in out.records()] == [20]


def test_many_closed_windows_leave_in_batches():
    operator, out, _ = start(window_step(Tumbling(10, 10)))
    operator.process(0, rows(*[(key, 1, None) for key in range(3000)]))
    operator.advance(0, 0, 10)
    assert [len(batch) for batch in out.batches()] == [1024, 1024, 952]


def test_missing_values_are_left_out_and_wrong_ones_meet_the_policy():
    step = window_step(tumbling(1), (("n", agg.count()), ("total", agg.sum("v")), ("last", agg.last("v"))))
    operator, out, _ = start(step, on_error="skip")
    operator.process(0, rows(("a", 1, {"v": 2}), ("a", 2, {"v": None}), ("a", 3, {"v": "7"}), ("a", 4, {})))
    operator.finish()
    assert out.records()[0] == {"key": "a", "start": 0, "end": 1000, "n": 2, "total": 2, "last": 2}
    assert operator.ctx.counters["skipped"] == 2
    operator, _, _ = start(step)
    with pytest.raises(TypeError, match="field 'v' is '7' of type str; the aggregate needs a number"):
        operator.process(0, rows(("a", 1, {"v": 2}), ("a", 3, {"v": "7"})))
    assert operator.state == {}, "nothing was added of a batch that failed"


def test_a_look_up_shows_what_open_windows_hold_so_far():
    operator, _, _ = start(window_step(Sliding(10, 5), (("total", agg.sum()),)))
    operator.process(0, rows(("a", 3, 1), ("a", 7, 2)))
    operator.advance(0, 0, 5)
    assert operator.view(operator.state["a"]) == [
        {"start": 0, "end": 10, "total": 3},
        {"start": 5, "end": 15, "total": 2},
    ]
    operator, _, _ = start(window_step(session(1)))
    operator.process(0, rows(("a", 3, 1)))
    assert operator.view(operator.state["a"]) == [{"start": 3, "end": 1003, "n": 1}]


@pytest.mark.parametrize("window", [tumbling(1), sliding(2, every=1), session(1)])
def test_records_without_time_or_key_are_an_error_with_a_remedy(window):
    operator, _, _ = start(window_step(window))
    with pytest.raises(
        FlowError, match=r"step 'stats': its records carry no event time \(at flow.py:9\)\n  -> name it with on="
    ):
        operator.process(0, Rows([1], ["a"]))
    with pytest.raises(FlowError, match="have no key"):
        operator.process(0, Rows([1], None, [1]))


@pytest.mark.parametrize(
    ("aggregates", "says"),
    [
        ((), "no aggregate"),
        ((("start", agg.count()),), "cannot be called 'start'"),
        ((("n", agg.count),), "not an aggregate"),
    ],
)
def test_bad_aggregates_are_refused_when_the_flow_is_built(aggregates, says):
    with pytest.raises(FlowError, match=says):
        window_step(tumbling(1), aggregates)


@pytest.mark.parametrize("window", [Tumbling(10, 10), Sliding(10, 5), Session(10)])
def test_what_comes_out_has_times_and_no_keys(window):
    step = window_step(window)
    operator, out, late = start(step)
    operator.advance(0, 0, 40)
    operator.process(0, rows(("a", 3, "early"), ("a", 45, "x")))
    operator.finish()
    assert step.partitioning((Partitioning.PARTITIONED,)) is Partitioning.NONE
    assert [batch.keys for tape in (out, late) for batch in tape.batches()] == [None, None]
    assert [record["key"] for record in out.records()] == ["a"] * len(out.records())
    assert out.batches()[0].times == [record["end"] - 1 for record in out.records()]
    assert (late.records(), late.batches()[0].times) == (["early"], [3])
