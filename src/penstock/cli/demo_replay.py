"""What the demo replays and how it judges what was detected: no terminal, no network.

The series and their labelled windows are from the Numenta Anomaly Benchmark (A. Lavin and S. Ahmad, "Evaluating
real-time anomaly detection algorithms", ICMLA 2015). The verdict here is plainer and stricter than its score: an alarm
counts for a window only when it *begins* within it, and every other alarm is a false one.
"""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from penstock.errors import UsageError

__all__ = ["Replay", "Series", "Verdict", "demo_files", "judge", "load_series"]

Span = tuple[str, str]
"""First and last moment, ISO times of equal form, so that they compare as text."""


@dataclass(frozen=True)
class Series:
    """One sensor: its readings in the order in which they were recorded, and the spans that people labelled."""

    name: str
    readings: tuple[dict[str, str | float], ...]
    windows: tuple[Span, ...]

    @property
    def title(self) -> str:
        """A short name for people."""
        name = self.name.removesuffix("_system_failure").removesuffix("_asg_misconfiguration")
        return name.replace("_", " ")

    def position(self, time: str) -> float:
        """Where `time` lies between the first and the last reading, 0 to 1."""
        first, last = (_moment(str(self.readings[i]["timestamp"])) for i in (0, -1))
        return min(1.0, max(0.0, (_moment(time) - first) / ((last - first) or 1.0)))


def _moment(time: str) -> float:
    return datetime.fromisoformat(time).replace(tzinfo=UTC).timestamp()


def demo_files() -> Path:
    """The folder with the demo's flow (`anomaly.py`) and data: in the wheel, or `examples` of the source tree.
    Raises `UsageError` when there is neither."""
    here = Path(__file__).resolve().parent
    folders = [here / "demo_files", here.parents[2] / "examples"]
    for folder in folders:
        if (folder / "anomaly.py").is_file():
            return folder
    raise UsageError("the demo's flow and data are not installed", remedy="clone the repository and run `make demo`")


def load_series(folder: Path) -> list[Series]:
    """Every `*.csv.gz` of `folder`, with the windows of its `labelled_windows.json`, the longest series first.
    Raises `UsageError` when there is nothing to read."""
    paths = sorted(folder.glob("*.csv.gz"))
    if not paths:
        raise UsageError(f"there are no series (*.csv.gz) in {folder}")
    labels = json.loads((folder / "labelled_windows.json").read_text("utf-8"))
    series = []
    for path in paths:
        name = path.name.removesuffix(".csv.gz")
        with gzip.open(path, "rt", encoding="utf-8") as file:
            readings = tuple({**row, "value": float(row["value"])} for row in csv.DictReader(file))
        series.append(Series(name, readings, tuple((start, end) for start, end in labels.get(name, ()))))
    return sorted(series, key=lambda one: -len(one.readings))


class Replay:
    """Which readings are due: every sensor at its own steady rate, so that all end together after `seconds`."""

    def __init__(self, series: list[Series], seconds: float) -> None:
        self._series, self._seconds = series, seconds
        self._sent = dict.fromkeys((one.name for one in series), 0)

    @property
    def total(self) -> int:
        """Readings of all series."""
        return sum(len(one.readings) for one in self._series)

    @property
    def done(self) -> bool:
        """Whether every reading was handed out."""
        return sum(self._sent.values()) == self.total

    def sent(self, name: str) -> int:
        """How many readings of a sensor were handed out."""
        return self._sent[name]

    def due(self, elapsed: float) -> list[dict[str, Any]]:
        """The readings that became due until `elapsed` seconds after the start, mixed as live sensors would be; those
        of one sensor keep their order."""
        share = 1.0 if elapsed >= self._seconds else max(0.0, elapsed / self._seconds)
        mixed: list[tuple[float, int, dict[str, Any]]] = []
        for number, one in enumerate(self._series):
            size = len(one.readings)
            start, end = self._sent[one.name], int(size * share)
            mixed += [((i + 1) / size, number, dict(one.readings[i])) for i in range(start, end)]
            self._sent[one.name] = max(start, end)
        mixed.sort(key=lambda entry: entry[:2])
        return [reading for _, _, reading in mixed]


@dataclass(frozen=True)
class Verdict:
    """How the alarms of one sensor compare with the labelled windows."""

    windows: tuple[str, ...] = ()
    """For each labelled window: `hit`, `missed`, or `ahead` while it may still be hit."""
    alarms: tuple[bool, ...] = field(default=())
    """For each alarm: whether it began in a labelled window."""

    @property
    def hits(self) -> int:
        """Labelled windows in which an alarm began."""
        return self.windows.count("hit")

    @property
    def missed(self) -> int:
        """Labelled windows that are over without one."""
        return self.windows.count("missed")

    @property
    def false_alarms(self) -> int:
        """Alarms that began in no labelled window."""
        return self.alarms.count(False)


def judge(windows: tuple[Span, ...], alarms: list[list[str]], now: str | None) -> Verdict:
    """Compare. `alarms`: first and last moment of each; `now`: the time of the newest reading (`None`: none yet)."""
    begun = [str(alarm[0]) for alarm in alarms]
    states = []
    for start, end in windows:
        if any(start <= moment <= end for moment in begun):
            states.append("hit")
        else:
            states.append("missed" if now is not None and now >= end else "ahead")
    return Verdict(tuple(states), tuple(any(s <= moment <= e for s, e in windows) for moment in begun))
