"""Measurements that are smoothed and fade."""

from __future__ import annotations

import pytest
from tests.placement.problems import keys, slots

from penstock.errors import UsageError
from penstock.placement.monitor import Monitor
from penstock.placement.plan import ExecutorLoad, Problem, Traffic

A, B, C = keys(3)
FLOW = {(A, B): Traffic(100.0, 1000.0)}


def test_the_first_measurement_counts_whole():
    monitor = Monitor()
    monitor.observe(0.0, {A: ExecutorLoad(0.5, 7, 9)}, FLOW)
    assert monitor.traffic(0.0) == FLOW
    assert monitor.load(0.0) == {A: ExecutorLoad(0.5, 7, 9)}


def test_half_of_the_past_is_left_after_a_half_life():
    monitor = Monitor(half_life=5.0, window=60.0)
    monitor.observe(0.0, {A: ExecutorLoad(1.0)}, FLOW)
    monitor.observe(5.0, {A: ExecutorLoad(0.0, 3, 4)}, {(A, B): Traffic(300.0, 0.0)})
    assert monitor.traffic(5.0)[A, B] == Traffic(200.0, 500.0)
    assert monitor.load(5.0)[A] == ExecutorLoad(0.5, 3, 4), "sizes are the latest ones"


def test_stale_rates_fade_and_are_forgotten():
    """Published: rates that nobody reports any more stay for ever."""
    monitor = Monitor(half_life=5.0, window=20.0)
    monitor.observe(0.0, {A: ExecutorLoad(1.0)}, FLOW)
    seen = []
    for second in (5.0, 10.0, 20.0, 21.0):
        monitor.observe(second, {}, {(B, C): Traffic(1.0, 1.0)})
        seen.append(monitor.traffic(second).get((A, B), Traffic(0.0, 0.0)).records)
    assert seen == [50.0, 25.0, 6.25, 0.0]
    assert monitor.load(21.0) == {}
    assert monitor.traffic(21.0).keys() == {(B, C)}


def test_silence_of_the_observer_fades_too():
    monitor = Monitor(half_life=5.0, window=30.0)
    monitor.observe(0.0, {A: ExecutorLoad(1.0)}, FLOW)
    assert monitor.traffic(5.0)[A, B].records == 100.0, "a measurement may be a little old"
    assert monitor.traffic(10.0)[A, B].records == 50.0
    assert monitor.traffic(31.0) == {}


def test_traffic_that_stops_fades_while_it_is_reported_as_zero():
    monitor = Monitor(half_life=1.0, window=5.0)
    monitor.observe(0.0, {}, FLOW)
    for second in range(1, 8):
        monitor.observe(float(second), {}, {(A, B): Traffic(0.0, 0.0)})
    assert monitor.traffic(7.0) == {}


def test_the_clock_of_another_observer():
    monitor = Monitor()
    monitor.observe(10.0, {}, FLOW)
    monitor.observe(9.0, {}, {(A, B): Traffic(9e9, 9e9)})
    assert monitor.traffic(10.0) == FLOW


def test_a_problem_gets_what_is_known_of_its_executors():
    monitor = Monitor()
    monitor.observe(0.0, dict.fromkeys((A, C), ExecutorLoad(0.1)), FLOW | {(B, C): Traffic(1.0, 1.0)})
    problem = monitor.problem(Problem((A, B), slots(a=1)), 0.0)
    assert problem.traffic == FLOW
    assert problem.load.keys() == {A}


def test_a_monitor_needs_a_half_life():
    with pytest.raises(UsageError, match="half_life"):
        Monitor(half_life=0.0)
