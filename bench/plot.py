"""Draws the plots; runs in an environment of its own, which has matplotlib: plot.py RESULTS.json DIRECTORY."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS, OTHERS = "#1f6f8b", "#b9c4c9"
SHOWN = ("add", "online: first record", "offline", "update", "delete")
"""Operations of W6 in the plot."""


def colour(name: str) -> str:
    return OURS if name.startswith("Penstock") else OTHERS


def throughput(figures: list[list[Any]], path: Path) -> None:
    """W1 as bars."""
    rows = [(name, values["M words/s"]) for workload, name, values in figures if workload == "w1"]
    if not rows:
        return
    rows.reverse()
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(rows) + 1.2), layout="constrained")
    bars = axes.barh([name for name, _ in rows], [rate for _, rate in rows], color=[colour(name) for name, _ in rows])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xlabel("million words per second, two cores")
    axes.set_title("W1: running word count")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def latencies(figures: list[list[Any]], path: Path) -> None:
    """W3: p50 and p99 over the rate."""
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for workload, name, values in figures:
        if workload.startswith("w3"):
            rate = float(workload.removeprefix("w3 at ").removesuffix("/s").replace(",", ""))
            lines.setdefault(name, []).append((rate, values["p50"], values["p99"]))
    if not lines:
        return
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, (name, points) in enumerate(lines.items()):
        rates, p50, p99 = zip(*points, strict=True)
        drawn = f"C{number}"
        axes.plot(rates, p50, marker="o", color=drawn, label=f"{name} p50")
        axes.plot(rates, p99, marker="^", linestyle=":", color=drawn, label=f"{name} p99")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("records per second")
    axes.set_ylabel("milliseconds")
    axes.set_title("W3: latency through one shuffle between two processes")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=120)


def memory(observed: list[dict[str, float]], path: Path) -> None:
    """Resident memory over time while fed ten times too fast."""
    if not observed:
        return
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    seconds = [each["seconds"] for each in observed]
    axes.plot(seconds, [each["largest"] for each in observed], color=OURS, label="larger worker")
    axes.plot(seconds, [each["smallest"] for each in observed], color=OTHERS, label="smaller worker")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
    axes.set_ylabel("resident memory, MB")
    axes.set_title("A flow fed ten times faster than it can process")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def operations(managed: dict[str, Any], path: Path) -> None:
    """W6: median of each operation over the number of nodes, with the spread; the limits dotted."""
    found: dict[str, list[tuple[int, list[float]]]] = {}
    for what, nodes, values in managed["operations"]:
        if what in SHOWN:
            found.setdefault(what, []).append((nodes, values))
    if not found:
        return
    limits = {(what, nodes): median(values) for what, nodes, values in managed["by_hand"]}
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, (what, points) in enumerate(found.items()):
        points.sort()
        nodes = [at for at, _ in points]
        middle = [median(values) for _, values in points]
        spread = [
            [m - min(values) for m, (_, values) in zip(middle, points, strict=True)],
            [max(values) - m for m, (_, values) in zip(middle, points, strict=True)],
        ]
        axes.errorbar(nodes, middle, spread, marker="o", capsize=3, color=f"C{number}", label=what)
        by_hand = [limits.get((what, at)) for at in nodes]
        if None not in by_hand:
            axes.plot(nodes, by_hand, marker=".", linestyle=":", color=f"C{number}")
    axes.set_ylim(bottom=0)
    axes.set_xticks(sorted({nodes for points in found.values() for nodes, _ in points}))
    axes.set_xlabel("node processes, all on the same two cores")
    axes.set_ylabel("milliseconds")
    axes.set_title("W6: operations on models (dotted: by hand)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=120)


def cycles(observed: list[dict[str, float]], path: Path) -> None:
    """What a node holds over cycles of online and offline."""
    going = [each for each in observed if not each["rested"]]
    if not going:
        return
    shown = {
        "processes": "processes",
        "descriptors": "descriptors of the agent",
        "memory": "memory of the agent, MB",
        "disk": "files, kB",
        "redis": "memory of Valkey, MB",
        "online": "online to first record, ms",
    }
    figure, grid = plt.subplots(2, 3, figsize=(10, 5), layout="constrained", sharex=True)
    for axes, (name, text) in zip(grid.flat, shown.items(), strict=True):
        axes.plot([each["cycle"] for each in going], [each[name] for each in going], color=OURS, linewidth=1)
        axes.set_ylim(bottom=0)
        axes.set_title(text, fontsize=9)
        axes.grid(alpha=0.3)
    figure.suptitle("W6: online and offline again on one node (flat is good)")
    figure.supxlabel("cycles", fontsize=9)
    figure.savefig(path, dpi=120)


def main(data: str, directory: str) -> None:
    """Draw everything there is data for."""
    results = json.loads(Path(data).read_text())
    Path(directory).mkdir(exist_ok=True)
    throughput(results["figures"], Path(directory) / "w1.png")
    latencies(results["figures"], Path(directory) / "w3.png")
    memory(results["overload"], Path(directory) / "overload.png")
    operations(results["w6"], Path(directory) / "w6.png")
    cycles(results["w6"]["cycles"], Path(directory) / "cycles.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
