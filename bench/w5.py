"""The rounds of W5: runs of `penstock_w5.py` for each recovery class in turn, and what they reported; its tables."""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from bench.environments import Unavailable
from bench.race import race

CLASSES = ("none", "passive", "active")
TARGETS = {"active": (50.0, 300.0), "passive": (150.0, 600.0)}
"""Class -> the most that the gap may be, p50 and p95, ms."""
START, KILL, RATE = 180.0, 25.0, 8.0
"""Seconds for a cluster to start, for one kill with all that follows, and of one run at full speed."""
MOVES, MOVE = 8, 40.0
"""Moves in one round, and seconds for one."""
Table = list[list[str]]


@dataclass
class Recovered:
    """Everything that was measured of W5."""

    gaps: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Class -> milliseconds of silence at the sink around each kill."""
    counts: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))
    """Class -> records, lost, repeated, out of order, over all runs."""
    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Class -> million words per second, of all rounds."""
    moves: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    """Class -> `pause` and `move` -> milliseconds."""
    problems: list[str] = field(default_factory=list)

    def for_plots(self) -> dict[str, Any]:
        """As JSON."""
        return {"gaps": self.gaps, "rates": self.rates}


def one_round(recovered: Recovered, kills: int) -> None:
    """Every class in turn: so many kills, and one run at full speed."""
    for name in CLASSES:
        for fact in _run(recovered, f"w5 {name}", ["kills", name, str(kills)], START + kills * KILL):
            if fact["what"] == "gap":
                recovered.gaps[name].append(fact["ms"])
            else:
                recovered.counts[name][fact["what"]] += fact["ms"]
        if name != "none":
            for fact in _run(recovered, f"w5 {name}: moves", ["moves", name, str(MOVES)], START + MOVES * MOVE):
                recovered.moves[name][fact["what"]].append(fact["ms"])
        for fact in _run(recovered, f"w5 {name} at full speed", ["rate", name, str(RATE)], START):
            recovered.rates[name].append(fact["ms"])
        shown = ", ".join(f"{gap:.0f}" for gap in recovered.gaps[name][-kills:])
        lost, repeated = (recovered.counts[name][what] for what in ("lost", "repeated"))
        print(f"  w5 {name}: gaps {shown} ms; lost {lost:.0f}, repeated {repeated:.0f} so far", flush=True)


def _run(recovered: Recovered, label: str, arguments: list[str], deadline: float) -> list[dict[str, Any]]:
    """What one run reported; one that failed is named with its last words."""
    try:
        with race([[sys.executable, "-m", "bench.penstock_w5", *arguments]], {}, deadline) as run:
            return run.finish()
    except Unavailable as problem:
        recovered.problems.append(f"{label}: {problem}")
        print(f"  {label}: not measured: {problem}", flush=True)
        return []


def quantile(values: list[float], share: float) -> float:
    """The value that so great a share does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def kills_table(recovered: Recovered) -> Table:
    """A row per class."""
    rows = [["recovery", "kills", "gap p50 ms", "p95", "most", "records", "lost", "repeated", "out of order"]]
    for name in CLASSES:
        gaps, counts = recovered.gaps.get(name), recovered.counts[name]
        if gaps:
            rows.append(
                [
                    name, str(len(gaps)), f"{statistics.median(gaps):.0f}", f"{quantile(gaps, 0.95):.0f}",
                    f"{max(gaps):.0f}", f"{counts['records']:,.0f}", f"{counts['lost']:,.0f}",
                    f"{counts['repeated']:,.0f}", f"{counts['out of order']:,.0f}",
                ]
            )  # fmt: skip
    return rows


def moves_table(recovered: Recovered) -> Table:
    """A row per class."""
    rows = [["recovery", "moves", "pause p50 ms", "p95", "whole move p50 ms"]]
    for name in CLASSES:
        if pauses := recovered.moves[name].get("pause"):
            whole = statistics.median(recovered.moves[name]["move"])
            middle = f"{statistics.median(pauses):.0f}"
            rows.append([name, str(len(pauses)), middle, f"{quantile(pauses, 0.95):.0f}", f"{whole:,.0f}"])
    return rows


def rates_table(recovered: Recovered) -> Table:
    """What a class costs at full speed."""
    rows = [["recovery", "M words/s", "spread", "of none"]]
    none = recovered.rates.get("none")
    for name in CLASSES:
        rates = recovered.rates.get(name)
        if rates:
            share = "" if not none else f"{statistics.median(rates) / statistics.median(none):.2f} x"
            rows.append([name, f"{statistics.median(rates):.2f}", f"{min(rates):.2f} to {max(rates):.2f}", share])
    return rows


def targets(recovered: Recovered) -> list[tuple[str, float, float]]:
    """What we must reach: its text, the most that it may be, and what it was."""
    rows = []
    for name, (middle, most) in TARGETS.items():
        if gaps := recovered.gaps.get(name):
            rows.append((f"W5: output gap with recovery {name}, p50", middle, statistics.median(gaps)))
            rows.append((f"W5: output gap with recovery {name}, p95", most, quantile(gaps, 0.95)))
    for name in TARGETS:
        if pauses := recovered.moves[name].get("pause"):
            text = f"W5: pause of a move of 100 MB of state with recovery {name}, p95"
            rows.append((text, 200.0, quantile(pauses, 0.95)))
    return rows
