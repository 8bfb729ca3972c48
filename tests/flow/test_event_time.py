"""Watermarks of several lanes, and values as event times."""

import datetime as dt

import pytest

from penstock.flow.batch import END_TIME, IDLE, MIN_TIME
from penstock.flow.event_time import Tracker, own_lane, to_ms


def test_the_least_lane_counts_once_every_lane_has_spoken():
    tracker = Tracker()
    assert tracker.update(0, 1, MIN_TIME) == MIN_TIME
    assert tracker.update(0, 2, MIN_TIME) == MIN_TIME
    assert tracker.update(0, 1, 50) == MIN_TIME
    assert tracker.update(0, 2, 30) == 30
    assert tracker.update(0, 2, 70) == 50
    assert tracker.update(1, 2, 60) == 50


def test_equal_lane_numbers_of_two_ports_are_two_lanes():
    tracker = Tracker()
    tracker.update(0, 7, 100)
    assert tracker.update(1, 7, 10) == 100, "a watermark never goes back"
    assert tracker.update(0, 7, 200) == 100
    assert tracker.update(1, 7, 150) == 150


def test_an_idle_lane_does_not_hold_the_others_back_until_it_wakes():
    tracker = Tracker()
    tracker.update(0, 1, 10)
    tracker.update(0, 2, 5)
    assert tracker.update(0, 2, IDLE) == 10
    assert tracker.update(0, 1, 40) == 40
    assert tracker.wake(0, 2) == 40
    assert tracker.update(0, 1, 60) == 40, "awake again at 5, it holds back"
    assert tracker.update(0, 2, 55) == 55


def test_all_idle_is_idle_and_all_ended_is_the_end():
    tracker = Tracker()
    tracker.update(0, 1, 10)
    tracker.update(0, 2, 20)
    assert tracker.update(0, 1, IDLE) == 20
    assert tracker.update(0, 2, END_TIME) == IDLE
    assert tracker.wake(0, 1) == 20
    assert tracker.update(0, 1, END_TIME) == END_TIME


def test_a_finished_lane_does_not_hold_back():
    tracker = Tracker()
    tracker.update(0, 1, 10)
    tracker.update(0, 2, 20)
    assert tracker.update(0, 1, END_TIME) == 20


def test_own_lanes_differ_and_are_none_of_a_source():
    assert own_lane("a") != own_lane("b")
    assert own_lane("a") == own_lane("a") < 0


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (1_700_000_000_123, 1_700_000_000_123),
        (1.9, 1),
        (-0.5, -1),
        (dt.datetime(1970, 1, 1, 0, 0, 1), 1000),
        (dt.datetime(1970, 1, 1, 1, 0, 0, 999, tzinfo=dt.timezone(dt.timedelta(hours=1))), 0),
        (dt.datetime(1969, 12, 31, 23, 59, 59, 999_999), -1),
        (dt.date(1970, 1, 2), 86_400_000),
        ("1970-01-01T00:00:02Z", 2000),
        ("2013-12-02 21:15:00", 1_386_018_900_000),
        ("1970-01-01 01:00:00+01:00", 0),
    ],
)
def test_times_of_every_kind(value, ms):
    assert to_ms(value) == ms


@pytest.mark.parametrize("value", [True, None, float("nan"), float("inf"), "yesterday", "1700000000000", [1], 2**61])
def test_what_is_no_time_is_refused_with_what_was_received(value):
    with pytest.raises((TypeError, ValueError)) as caught:
        to_ms(value)
    assert str(value) in str(caught.value)
