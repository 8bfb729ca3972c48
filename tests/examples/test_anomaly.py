"""The demo's flow: what it detects, and that every reading is counted."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.examples.references import DATA, EXAMPLES, lines

from penstock import testing
from penstock.cli.demo_replay import judge, load_series

SERIES = load_series(DATA / "nab")
EXPECTED = {
    "machine_temperature_system_failure": (4, 5),
    "ambient_temperature_system_failure": (2, 0),
    "ec2_request_latency_system_failure": (2, 0),
    "cpu_utilization_asg_misconfiguration": (0, 0),
    "nyc_taxi": (0, 0),
    "rogue_agent_key_hold": (0, 1),
    "rogue_agent_key_updown": (0, 3),
}
"""Hits and false alarms, as `docs/examples.md` says."""


@pytest.mark.parametrize(("executors", "files"), [(1, 7), (2, 7)])
def test_it_detects_what_the_documentation_says(load, executors: int, files: int) -> None:
    run = testing.run(load("anomaly.py"), executors=executors, partitions=files, limit=10**9)
    for series in SERIES:
        state = run.state["chart"][series.name]
        assert state["records"] == len(series.readings)
        assert state["time"] == series.readings[-1]["timestamp"]
        verdict = judge(series.windows, state["alarms"], state["time"])
        assert (verdict.hits, verdict.false_alarms) == EXPECTED[series.name], series.name
    begun = {(name, alarm[0]) for name, state in run.state["chart"].items() for alarm in state["alarms"]}
    assert {(record.key, record.value["time"]) for record in run.outputs["alarms"]} == begun


def test_the_table_in_the_documentation_is_the_one_that_is_tested() -> None:
    text = (EXAMPLES.parent / "docs" / "examples.md").read_text("utf-8")
    for series in SERIES:
        hits, false_alarms = EXPECTED[series.name]
        assert f"| {series.title} | {len(series.windows)} | {hits} | {false_alarms} |" in text


def test_pushed_readings_are_scored_like_recorded_ones(load) -> None:
    machine = SERIES[0]
    pushed = testing.run(load("anomaly.py", input="push"), {"readings": [dict(r) for r in machine.readings]})
    recorded = testing.run(load("anomaly.py"), partitions=7, limit=10**9)
    assert pushed.state["chart"][machine.name] == recorded.state["chart"][machine.name]


def test_a_run_that_crashes_and_goes_on_gives_the_same_state(load) -> None:
    readings = [dict(reading) for reading in SERIES[0].readings[:6000]]
    whole = testing.run(load("anomaly.py", input="push"), {"readings": readings}).state["chart"]
    harness = testing.Harness(load("anomaly.py", input="push"), executors=2)
    harness.feed("readings", readings[:3000])
    harness.checkpoint()
    harness.crash_at("readings", 4321)
    with pytest.raises(testing.Crash):
        harness.feed("readings", readings[3000:])
    with harness.restart() as again:
        again.finish()
        assert again.states("chart") == whole


def test_processes_raise_the_same_alarms(penstock_run, load) -> None:
    found = penstock_run("anomaly.py", "--workers", "2", "--executors", "2")
    run = testing.run(load("anomaly.py"), partitions=7, limit=10**9)
    assert Counter((r["key"], r["value"]["time"]) for r in found) == Counter(
        (record.key, record.value["time"]) for record in run.outputs["alarms"]
    )


def test_the_copied_series_are_whole() -> None:
    rows = {path.name: len(lines(path)) - 1 for path in (DATA / "nab").glob("*.csv.gz")}
    assert sum(rows.values()) == 69_561
    assert rows["machine_temperature_system_failure.csv.gz"] == 22_695
