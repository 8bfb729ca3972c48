"""What the demo replays, and how it judges."""

from __future__ import annotations

import gzip
import json

import pytest

from penstock.cli.demo_replay import Replay, Series, demo_files, judge, load_series
from penstock.errors import UsageError


def series(name: str, size: int) -> Series:
    readings = tuple({"sensor": name, "timestamp": f"2014-01-01 00:{i:02}:00", "value": float(i)} for i in range(size))
    return Series(name, readings, (("2014-01-01 00:02:00", "2014-01-01 00:04:00"),))


def test_everything_is_handed_out_once_and_in_order_per_sensor() -> None:
    replay = Replay([series("a", 50), series("b", 7)], 10.0)
    got: list[dict] = []
    for tenth in range(111):
        got += replay.due(tenth / 10)
    assert replay.done
    assert replay.total == len(got) == 57
    for name, size in (("a", 50), ("b", 7)):
        assert [r["value"] for r in got if r["sensor"] == name] == [float(i) for i in range(size)]


def test_sensors_of_different_length_are_mixed_evenly() -> None:
    replay = Replay([series("a", 40), series("b", 4)], 10.0)
    got = replay.due(5.0)
    assert [r["sensor"] for r in got].count("a") == 20
    assert [r["sensor"] for r in got].count("b") == 2
    assert [r["sensor"] for r in got][9:11] == ["a", "b"]


def test_a_late_call_hands_out_what_was_missed_and_time_never_takes_back() -> None:
    replay = Replay([series("a", 10)], 10.0)
    assert len(replay.due(4.0)) == 4
    assert replay.due(1.0) == []
    assert replay.sent("a") == 4
    assert len(replay.due(1e9)) == 6
    assert replay.due(1e9) == []


WINDOWS = (("2014-01-02 00:00:00", "2014-01-03 00:00:00"), ("2014-02-01 00:00:00", "2014-02-02 00:00:00"))


def test_an_alarm_counts_only_when_it_begins_in_a_window() -> None:
    alarms = [["2014-01-01 23:00:00", "2014-01-02 12:00:00"], ["2014-02-01 10:00:00", "2014-02-01 11:00:00"]]
    verdict = judge(WINDOWS, alarms, "2014-03-01 00:00:00")
    assert verdict.windows == ("missed", "hit")
    assert verdict.alarms == (False, True)
    assert (verdict.hits, verdict.missed, verdict.false_alarms) == (1, 1, 1)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (None, ("ahead", "ahead")),
        ("2014-01-02 10:00:00", ("ahead", "ahead")),
        ("2014-01-10 00:00:00", ("missed", "ahead")),
    ],
)
def test_a_window_is_missed_only_when_it_is_over(now: str | None, expected: tuple[str, str]) -> None:
    assert judge(WINDOWS, [], now).windows == expected


def test_two_alarms_in_one_window_are_one_hit_and_no_false_alarm() -> None:
    alarms = [["2014-01-02 01:00:00", "2014-01-02 02:00:00"], ["2014-01-02 20:00:00", "2014-01-02 21:00:00"]]
    verdict = judge(WINDOWS, alarms, "2014-01-20 00:00:00")
    assert (verdict.hits, verdict.false_alarms) == (1, 0)


def test_the_series_of_the_demo_are_complete() -> None:
    loaded = load_series(demo_files() / "data" / "nab")
    assert len(loaded) == 7
    assert loaded[0].title == "machine temperature"
    assert len(loaded[0].readings) == 22_695
    assert sum(len(one.readings) for one in loaded) == 69_561
    assert sum(len(one.windows) for one in loaded) == 19
    assert loaded[0].position("2013-12-02 21:15:00") == 0.0
    assert loaded[0].position("2014-02-19 15:25:00") == 1.0


def test_a_folder_without_series_is_an_error(tmp_path) -> None:
    with pytest.raises(UsageError, match="no series"):
        load_series(tmp_path)


def test_a_series_without_labels_has_no_windows(tmp_path) -> None:
    (tmp_path / "labelled_windows.json").write_text(json.dumps({}))
    with gzip.open(tmp_path / "one.csv.gz", "wt") as file:
        file.write("sensor,timestamp,value\none,2014-01-01 00:00:00,1.5\n")
    (one,) = load_series(tmp_path)
    assert one.windows == ()
    assert one.readings == ({"sensor": "one", "timestamp": "2014-01-01 00:00:00", "value": 1.5},)
