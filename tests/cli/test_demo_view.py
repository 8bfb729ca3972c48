"""What the demo shows, drawn from snapshots made by hand."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from penstock.cli.demo_replay import Series
from penstock.cli.demo_session import Sensor, Snapshot, Strike, unfinished
from penstock.cli.demo_view import LiveView, PlainView, closing, screen, sparkline, timeline
from penstock.errors import PenstockError

DAYS = [f"2014-01-{day:02} 00:00:00" for day in range(1, 32)]


def snapshot(**more) -> Snapshot:
    series = Series(
        "machine_temperature_system_failure",
        tuple({"sensor": "m", "timestamp": day, "value": 1.0} for day in DAYS),
        ((DAYS[5], DAYS[7]), (DAYS[10], DAYS[12]), (DAYS[25], DAYS[27])),
    )
    sensor = Sensor(series, pushed=20, counted=20, time=DAYS[20], value=71.5, score=12.0)
    sensor.alarms = [[DAYS[6], DAYS[8]], [DAYS[15], DAYS[16]]]
    sensor.history.extend([1.0, 2.0, 3.0])
    node = {"id": "n1", "address": "http://127.0.0.1:8700", "executors": 2, "workers": 1, "cpu": 0.5, "rss": 2**20}
    return Snapshot("http://127.0.0.1:8700", 50.0, 31, [sensor], nodes=[node | {"leader": True}], **more)


def drawn(what, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(what)
    return console.file.getvalue()


def test_the_screen_fits_a_terminal_of_100_by_30(monkeypatch) -> None:
    strike = Strike(123456, "node-2", 20.0, back=0.5)
    shown = snapshot(phase="replaying", elapsed=20.0, rate=1234.0, strike=strike)
    shown.sensors = shown.sensors * 7
    shown.sensors[0].value = 39_197.0
    shown.sensors[0].history.extend(range(40))
    monkeypatch.setattr(Series, "title", "rogue agent key updown")
    shown.nodes = shown.nodes * 3
    lines = drawn(screen(shown)).splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100
    assert "…" not in "".join(lines)


def test_the_screen_says_what_is_known() -> None:
    text = drawn(screen(snapshot(phase="replaying", elapsed=20.0, rate=1234.0)))
    known = ["machine temperature", "n1", "leader", "1,234 readings/s", "71.5", "12.0"]
    for expected in [*known, "windows hit 1 of 3, missed 1   false alarms 1"]:
        assert expected in text
    assert "curl http://127.0.0.1:8700/v1/state/default/anomaly/chart/machine_temperature_system_failure" in text


def test_the_timeline_tells_hit_missed_ahead_and_false_alarm_apart() -> None:
    line = timeline(snapshot().sensors[0], width=31)
    assert line.plain == "─────███──▒▒▒──!────·····▒▒▒···"


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], ""), ([3.0, 3.0], "▁▁"), ([0.0, 1.0], "▁█"), ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█")],
)
def test_a_sparkline_is_scaled_to_its_values(values: list[float], expected: str) -> None:
    assert sparkline(values) == expected


def test_the_closing_table_sums_up() -> None:
    text = drawn(closing(snapshot(phase="finished")))
    assert "exact: 20 readings pushed, 20 counted in keyed state" in text
    (total,) = [line.split() for line in text.splitlines() if line.startswith("all")]
    assert total == ["all", "20", "3", "1", "1", "1"]


def test_a_wrong_count_is_said_and_is_an_error() -> None:
    wrong = snapshot(phase="finished")
    wrong.sensors[0].counted = 19
    assert "not exact" in drawn(closing(wrong))
    problem = unfinished(wrong)
    assert isinstance(problem, PenstockError)
    assert "20 readings were acknowledged, but 19 are counted" in str(problem)
    assert unfinished(snapshot()) is None


def test_plain_lines_come_now_and_then() -> None:
    out = io.StringIO()
    with PlainView(Console(file=out, width=200), every=5.0) as view:
        for tenth in range(100):
            view.show(snapshot(phase="replaying", elapsed=tenth / 10))
        view.show(snapshot(phase="finished", elapsed=10.0))
    lines = out.getvalue().splitlines()
    assert sum("curl" in line for line in lines) == 3
    assert sum("readings/s" in line for line in lines) == 3


def test_the_live_view_leaves_the_terminal_clean() -> None:
    out = io.StringIO()
    with LiveView(Console(file=out, width=100, height=40, force_terminal=True)) as view:
        view.say("Starting")
        view.show(snapshot(phase="replaying", elapsed=1.0))
    assert "machine temperature" in out.getvalue()
    assert out.getvalue().endswith("\x1b[2K")
