"""Durations and the arithmetic of windows."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import FlowError
from penstock.flow.windows import Sliding, duration_ms, session, sliding, tumbling


@pytest.mark.parametrize(
    ("duration", "ms"),
    [("10s", 10_000), ("500ms", 500), ("1m30s", 90_000), ("1.5 h", 5_400_000), ("2d", 172_800_000), (3, 3000),
     (0.25, 250), (dt.timedelta(minutes=1), 60_000), ("0.1s", 100)],
)  # fmt: skip
def test_durations(duration, ms):
    assert duration_ms(duration) == ms


@pytest.mark.parametrize("duration", ["", "10", "ten seconds", "10x", None, True, 0, -1, "0s", "0.5ms", float("nan")])
def test_bad_durations_are_named(duration):
    with pytest.raises(FlowError, match="window size") as caught:
        tumbling(duration)
    assert repr(duration) in str(caught.value)
    assert "(at test_windows.py:" in str(caught.value)


def test_an_unreadable_duration_lists_the_units():
    with pytest.raises(FlowError, match=r"'1 day' is not a duration.*\n.*'1d' \(units: ms, s, m, h, d\)"):
        tumbling("1 day")


def test_no_lateness_is_a_duration_where_it_is_allowed():
    assert duration_ms(0, least=0) == 0


def test_sliding_windows_must_not_leave_gaps():
    with pytest.raises(FlowError, match="leave gaps"):
        sliding("10s", every="11s")
    assert sliding("10s", every="10s").pane_ms == 10_000
    assert session("10s").gap_ms == 10_000


@given(st.integers(-500, 500), st.integers(1, 30), st.integers(0, 40), st.integers(-100, 200))
def test_window_arithmetic_agrees_with_enumeration(time, slide, more, behind):
    window = Sliding(slide + more, slide)
    starts = [s for s in range(-1200, 1200) if s % slide == 0 and s <= time < s + window.size_ms]
    assert list(window.starts(time)) == starts
    ends = [s + window.size_ms for s in starts]
    assert window.last_end(time) == ends[-1]
    after = time + behind
    open_ends = [end for end in ends if end > after]
    if open_ends:
        assert window.first_end(time, after) == open_ends[0]
    assert len({s // window.pane_ms for s in starts}) == len(starts)
