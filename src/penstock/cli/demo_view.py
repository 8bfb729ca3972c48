"""How the demo looks: a live screen on a terminal of at least 100 columns and 30 lines, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from penstock.cli.demo_session import HISTORY, MODEL, STEP, Sensor, Snapshot

__all__ = ["LiveView", "PlainView", "View", "closing", "commands", "sparkline", "timeline"]

LIMIT = 10.0
"""The chart's limit in `anomaly.py`: at and above it, a score is shown as an alarm."""
BARS = "▁▂▃▄▅▆▇█"
TIMELINE, CLOSING_TIMELINE = 30, 26
"""Cells of a timeline on the screen, and in the closing table."""


class View(Protocol):
    """Where the demo is shown."""

    shown: bool
    """Whether the replay has begun to be shown."""

    def __enter__(self) -> View: ...
    def __exit__(self, *exc: object) -> None: ...

    def say(self, text: str) -> None:
        """A line before the replay starts."""
        ...

    def show(self, snapshot: Snapshot) -> None:
        """What is known now."""
        ...


class PlainView:
    """A line now and then, for logs and pipes."""

    def __init__(self, console: Console, every: float = 5.0) -> None:
        self._console, self._every, self._next = console, every, 0.0
        self._said = ""
        self._told: set[str] = set()
        self.shown = False

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.say(text)

    def show(self, snapshot: Snapshot) -> None:
        if not self.shown:
            self.shown = True
            self.say(f"{len(snapshot.nodes)} nodes, the API is at {snapshot.url}; while this runs:")
            for line in commands(snapshot):
                self.say(f"  {line}")
        if snapshot.strike is not None:
            self._tell_once(snapshot.strike.text)
        if snapshot.elapsed < self._next and snapshot.phase == "replaying":
            return
        self._next = snapshot.elapsed + self._every
        found = snapshot.summary()
        self.say(
            f"{snapshot.elapsed:5.1f} s  {snapshot.rate:6,.0f} readings/s  pushed {snapshot.pushed:,}  "
            f"counted {snapshot.counted:,}  windows hit {found['windows']['hit']}, "
            f"missed {found['windows']['missed']}, false alarms {found['false_alarms']}"
        )


class LiveView:
    """One screen that is drawn again at every look."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self.shown = False

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        self._live.update(Text(f"{text} …", style="dim"), refresh=True)

    def show(self, snapshot: Snapshot) -> None:
        self.shown = True
        self._live.update(screen(snapshot), refresh=True)


def screen(snapshot: Snapshot) -> RenderableType:
    """The whole screen: 28 lines for three nodes and seven sensors."""
    return Group(
        _headline(snapshot),
        _nodes(snapshot),
        _sensors(snapshot),
        _counts(snapshot),
        Panel(
            Text("\n".join(commands(snapshot)), style="cyan", no_wrap=True, overflow="ellipsis"),
            title="[dim]try in another terminal[/]",
            title_align="left",
            border_style="dim",
        ),
    )


def _headline(snapshot: Snapshot) -> RenderableType:
    grid = Table.grid(expand=True)
    grid.add_column()
    grid.add_column(justify="right")
    grid.add_row(
        Text.assemble(("Penstock demo", "bold"), ("  anomaly scores of live sensors on three nodes", "dim")),
        Text.assemble((snapshot.url, "cyan"), ("   Ctrl-C ends", "dim")),
    )
    return grid


def _nodes(snapshot: Snapshot) -> RenderableType:
    table = Table(box=None, expand=True, header_style="dim", pad_edge=False)
    table.add_column("node")
    table.add_column("address")
    for name in ("executors", "workers", "CPU", "memory"):
        table.add_column(name, justify="right")
    table.add_column("", width=8)
    for node in snapshot.nodes:
        table.add_row(
            Text(str(node["id"]), style="" if node.get("live", True) else "red"),
            str(node.get("address", "")),
            str(node.get("executors", 0)),
            str(node.get("workers", 0)),
            f"{100 * float(node.get('cpu', 0.0)):.0f} %",
            f"{int(node.get('rss', 0)) / 2**20:.0f} MB",
            Text("leader", style="green") if node.get("leader") else Text(""),
        )
    struck = "" if snapshot.strike is None else f"   [red]{snapshot.strike.text}[/]"
    return Panel(table, title=f"[dim]nodes[/]{struck}", title_align="left", border_style="dim", padding=(0, 1))


def _sensors(snapshot: Snapshot) -> RenderableType:
    table = Table(box=None, expand=True, header_style="dim", pad_edge=False)
    table.add_column("sensor", no_wrap=True)
    table.add_column("live", width=HISTORY, no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True, min_width=8)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("labelled windows and alarms", width=TIMELINE, no_wrap=True)
    for sensor in snapshot.sensors:
        alarmed = sensor.score >= LIMIT
        table.add_row(
            sensor.series.title,
            Text(sparkline(list(sensor.history)), style="red" if alarmed else "blue"),
            "" if sensor.value is None else f"{sensor.value:,.1f}",
            Text(f"{sensor.score:.1f}", style="bold red" if alarmed else ""),
            timeline(sensor),
        )
    legend = (
        "[dim]sensors[/]   [yellow]▒[/][dim] labelled[/]  [bold green]█[/][dim] hit[/]  [red]![/][dim] false alarm[/]"
    )
    return Panel(table, title=legend, title_align="left", border_style="dim", padding=(0, 1))


def _counts(snapshot: Snapshot) -> RenderableType:
    found = snapshot.summary()
    windows = found["windows"]
    counted = Text.assemble(
        "pushed ",
        (f"{snapshot.pushed:,}", "bold"),
        "  counted in keyed state ",
        (f"{snapshot.counted:,}", "bold green" if snapshot.exact else "bold"),
        (" = exact" if snapshot.exact else "", "green"),
        ("" if snapshot.exact or snapshot.phase == "finished" else "  (in flight)", "dim"),
    )
    judged = Text.assemble(
        "windows hit ",
        (str(windows["hit"]), "bold green"),
        f" of {windows['labelled']}, missed ",
        (str(windows["missed"]), "bold"),
        "   false alarms ",
        (str(found["false_alarms"]), "bold red"),
    )
    grid = Table.grid(expand=True)
    grid.add_column()
    grid.add_column(justify="right")
    grid.add_row(counted, Text(f"{snapshot.rate:,.0f} readings/s", style="bold"))
    grid.add_row(
        judged, Text(f"{min(snapshot.elapsed, snapshot.seconds):.0f} of {snapshot.seconds:.0f} s", style="dim")
    )
    bar = ProgressBar(total=snapshot.total, completed=snapshot.pushed, style="dim", complete_style="blue")
    return Panel(
        Group(grid, bar), title="[dim]result so far[/]", title_align="left", border_style="dim", padding=(0, 1)
    )


def commands(snapshot: Snapshot) -> list[str]:
    """What to type while the demo runs."""
    url, penstock = snapshot.url, program()
    return [
        f"curl {url}/v1/state/{MODEL}/{STEP}/machine_temperature_system_failure",
        f"curl {url}/v1/models/{MODEL}",
        f"curl {url}/v1/nodes",
        f"PENSTOCK_URL={url} {penstock} top",
    ]


def program() -> str:
    """How a shell finds `penstock`: by its name, or by its path when the environment is not active."""
    path = Path(sys.executable).with_name("penstock")
    if shutil.which("penstock") is not None or not path.exists():
        return "penstock"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def sparkline(values: list[float]) -> str:
    """The values as bars, scaled between their least and greatest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    width = (high - low) or 1.0
    return "".join(BARS[min(7, int(8 * (value - low) / width))] for value in values)


def timeline(sensor: Sensor, width: int = TIMELINE) -> Text:
    """The series from its first to its last reading in `width` cells: labelled windows, hits, false alarms."""
    cells: list[tuple[str, str]] = [("·", "dim")] * width
    reached = sensor.series.position(sensor.time) if sensor.time else 0.0

    def cell(moment: str) -> int:
        return min(width - 1, int(width * sensor.series.position(moment)))

    for i in range(int(width * reached)):
        cells[i] = ("─", "")
    verdict = sensor.verdict
    for (start, end), said in zip(sensor.series.windows, verdict.windows, strict=True):
        look = {"hit": ("█", "bold green"), "missed": ("▒", "yellow"), "ahead": ("▒", "dim yellow")}[said]
        for i in range(cell(start), cell(end) + 1):
            cells[i] = look
    for alarm, good in zip(sensor.alarms, verdict.alarms, strict=True):
        if not good and cells[cell(alarm[0])][0] != "█":
            cells[cell(alarm[0])] = ("!", "bold red")
    return Text.assemble(*cells)


def closing(snapshot: Snapshot) -> RenderableType:
    """What stays on the screen: detected windows against the labelled ones, and the count."""
    table = Table(title="Labelled windows and what was detected", title_justify="left", title_style="bold")
    table.box, table.pad_edge = None, False
    table.add_column("sensor")
    for name in ("readings", "windows", "hit", "missed", "false alarms"):
        table.add_column(name, justify="right")
    table.add_column("", width=CLOSING_TIMELINE, no_wrap=True)
    found = snapshot.summary()
    for sensor in snapshot.sensors:
        verdict = sensor.verdict
        table.add_row(
            sensor.series.title,
            f"{sensor.counted:,}",
            str(len(verdict.windows)),
            Text(str(verdict.hits), style="green"),
            str(verdict.missed),
            Text(str(verdict.false_alarms), style="red" if verdict.false_alarms else ""),
            timeline(sensor, CLOSING_TIMELINE),
        )
    windows = found["windows"]
    table.add_section()
    table.add_row(
        "all", f"{snapshot.counted:,}", str(windows["labelled"]), str(windows["hit"]), str(windows["missed"]),
        str(found["false_alarms"]), style="bold",
    )  # fmt: skip
    verdict_line = (
        f"[green]exact:[/] {snapshot.pushed:,} readings pushed, {snapshot.counted:,} counted in keyed state"
        if snapshot.exact
        else f"[red]not exact:[/] {snapshot.pushed:,} readings pushed, {snapshot.counted:,} counted in keyed state"
    )
    struck = [] if snapshot.strike is None else [Text(snapshot.strike.text)]
    return Group(table, Text(""), *struck, Text.from_markup(verdict_line))
