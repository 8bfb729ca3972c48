"""Joins: pairs against brute force, windows, lateness, restarts; and the latest value of the other side."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.streams import streams
from tests.flow.tape import Into, restart, rows, start

from penstock.errors import FlowError
from penstock.flow.batch import END_TIME, IDLE, MIN_TIME, Keyed, Rows
from penstock.flow.graph import Input, Partitioning
from penstock.flow.steps.join import Join
from penstock.flow.steps.join_latest import JoinLatest
from penstock.flow.steps.stamp import Stamp
from penstock.flow.windows import Sliding, Tumbling, session

INPUTS = (Input("l"), Input("r"))


def join(window=None, how="inner", **more):
    return Join("pairs", INPUTS, "flow.py:5", window, how, **more)


def feed(step, left, right, order, restart_at=None):
    """Two stamped streams into a join, interleaved as `order` (0 left, 1 right) says. Gives pairs and late records."""
    operator, out, late = start(step)
    outs, lates = [out], [late]

    def stampers():
        made = []
        for port, batches in enumerate((left, right)):
            stamper, _ = start(Stamp("time", (), "", lambda value: value[1]))
            stamper.connect((Into(operator, port),))
            for lane in sorted({lane for lane, _ in batches}):
                stamper.advance(0, lane, MIN_TIME)
            made.append(stamper)
        return made

    into = stampers()
    waiting = [list(left), list(right)]
    turns = [port for port in order if port < 2] + [0] * len(left) + [1] * len(right)
    for i, port in enumerate(turns):
        if i == restart_at:
            operator, out, late = restart(step, operator)
            outs.append(out)
            lates.append(late)
            into = stampers()
        if waiting[port]:
            lane, records = waiting[port].pop(0)
            side = "LR"[port]
            into[port].process(0, Rows([(side, t, v) for _, t, v in records], [k for k, _, _ in records], None, lane))
    for port, batches in enumerate((left, right)):
        for lane in sorted({lane for lane, _ in batches}):
            into[port].advance(0, lane, END_TIME)
    operator.finish()
    return [r for tape in outs for r in tape.records()], [r for tape in lates for r in tape.records()], operator, outs


def every_pair(left, right, fits):
    return Counter(
        Keyed(lk, (("L", lt, lv), ("R", rt, rv)))
        for _, ls in left
        for lk, lt, lv in ls
        for _, rs in right
        for rk, rt, rv in rs
        for _ in range(fits(lt, rt))
        if lk == rk
    )


ORDER = st.lists(st.integers(0, 1), max_size=12)


@given(streams(), streams(), ORDER, st.none() | st.integers(0, 10))
def test_without_a_window_every_pair_comes_once_whatever_the_order(left, right, order, restart_at):
    pairs, late, _, _ = feed(join(), left, right, order, restart_at)
    assert Counter(pairs) == every_pair(left, right, lambda lt, rt: 1)
    assert late == []


@given(streams(late_ms=30), streams(late_ms=30), ORDER, st.integers(0, 60))
def test_within_pairs_what_is_near_and_forgets_the_rest(left, right, order, within):
    pairs, late, operator, _outs = feed(join(within_ms=within, late_ms=30), left, right, order)
    assert Counter(pairs) == every_pair(left, right, lambda lt, rt: abs(lt - rt) <= within)
    assert late == []
    assert operator.state == {}


@given(
    streams(late_ms=30),
    streams(late_ms=30),
    ORDER,
    st.integers(1, 60),
    st.integers(0, 60),
    st.none() | st.integers(0, 10),
)
def test_windows_pair_what_is_in_the_same_window(left, right, order, slide, more, restart_at):
    window = Sliding(slide + more, slide)
    pairs, late, operator, outs = feed(join(window, late_ms=30), left, right, order, restart_at)
    expected = every_pair(left, right, lambda lt, rt: len(set(window.starts(lt)) & set(window.starts(rt))))
    assert Counter(pairs) == expected
    assert late == []
    assert operator.state == {}
    if restart_at is None:
        assert outs[0].late_for_a_next_step() == []


@given(streams(late_ms=30), streams(late_ms=30), ORDER)
def test_a_left_join_adds_what_found_no_partner(left, right, order):
    window = Tumbling(40, 40)
    pairs, _, _, outs = feed(join(window, "left", late_ms=30), left, right, order)
    expected = every_pair(left, right, lambda lt, rt: lt // 40 == rt // 40)
    taken = {(k, rt // 40) for _, rs in right for k, rt, _ in rs}
    expected += Counter(Keyed(k, (("L", t, v), None)) for _, ls in left for k, t, v in ls if (k, t // 40) not in taken)
    assert Counter(pairs) == expected
    assert outs[0].late_for_a_next_step() == []


def test_late_records_of_a_windowed_join_go_to_the_side_output():
    operator, out, late = start(join(Tumbling(10, 10)))
    for port in (0, 1):
        operator.advance(port, 0, 20)
    operator.process(1, rows(("a", 19, "old"), ("a", 21, "new")))
    operator.process(0, rows(("a", 29, "left")))
    assert late.records() == [Keyed("a", "old")]
    assert out.records() == [Keyed("a", ("left", "new"))]
    assert operator.ctx.counters["late"] == 1


def test_untimed_streams_join_without_times():
    operator, out, _ = start(join())
    operator.process(1, rows(("a", 0, 1), timed=False))
    operator.process(0, rows(("a", 0, 2), timed=False))
    assert out.records() == [Keyed("a", (2, 1))]
    assert out.batches()[0].times is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"how": "outer"}, "not a kind of join"),
        ({"how": "left"}, "needs a window"),
        ({"window": session(1)}, "session windows"),
        ({"window": Tumbling(1, 1), "within_ms": 5}, "not both"),
    ],
)
def test_joins_that_cannot_be(arguments, says):
    with pytest.raises(FlowError, match=says):
        join(**arguments)


def test_unkeyed_and_untimed_input_is_an_error():
    operator, _, _ = start(join(Tumbling(1, 1)))
    with pytest.raises(FlowError, match="no event time"):
        operator.process(0, rows(("a", 0, 1), timed=False))
    with pytest.raises(FlowError, match="no key"):
        operator.process(1, rows(("a", 0, 1), keyed=False))


def latest():
    return JoinLatest("now", INPUTS, "flow.py:6")


def test_latest_is_none_before_and_the_newest_after():
    operator, out = start(latest())
    operator.process(0, rows(("a", 1, "l1"), lane=4))
    operator.process(1, rows(("a", 5, "r5"), ("a", 3, "r3"), ("b", 1, "r1")))
    operator.process(0, rows(("a", 9, "l2"), ("b", 9, "l3"), ("c", 9, "l4"), lane=4))
    assert out.records() == [
        Keyed("a", ("l1", None)),
        Keyed("a", ("l2", "r5")),
        Keyed("b", ("l3", "r1")),
        Keyed("c", ("l4", None)),
    ]
    assert [(batch.lane, batch.times) for batch in out.batches()] == [(4, [1]), (4, [9, 9, 9])]


def test_latest_without_times_goes_by_arrival_and_survives_a_restart():
    operator, out = start(latest())
    operator.process(1, rows(("a", 0, "r1"), ("a", 0, "r2"), timed=False))
    assert operator.view(operator.state["a"]) == "r2"
    operator, out = restart(latest(), operator)
    operator.process(0, rows(("a", 0, "l"), timed=False))
    assert out.records() == [Keyed("a", ("l", "r2"))]


def test_latest_forwards_the_watermarks_of_the_left_alone():
    operator, out = start(latest())
    operator.advance(0, 1, 10)
    operator.advance(1, 1, 5)
    operator.advance(1, 1, IDLE)
    operator.advance(0, 1, END_TIME)
    assert out.log == [("advance", 1, 10), ("advance", 1, END_TIME)]


def test_latest_needs_keys():
    operator, _ = start(latest())
    with pytest.raises(FlowError, match="right input have no key"):
        operator.process(1, rows(("a", 0, 1), keyed=False))
    assert latest().partitioning((Partitioning.KEYED, Partitioning.KEYED)) is Partitioning.PARTITIONED
