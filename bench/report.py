"""The table on the terminal and bench/RESULTS.md: medians, ratios, targets, machine and versions."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import report_w6, w5
from bench.contestants import W1, W3, Contestant, Figures
from bench.environments import version_of
from bench.w5 import Recovered
from bench.w6 import Managed

PENSTOCK, LIMIT, BYTEWAX = "Penstock", "limit: 2 processes by hand", "Bytewax"
Table = list[list[str]]


@dataclass
class Results:
    """Everything that was measured."""

    options: dict[str, Any]
    cores: str
    figures: dict[tuple[str, str], Figures] = field(default_factory=dict)
    spread: dict[tuple[str, str], dict[str, list[float]]] = field(default_factory=dict)
    problems: dict[tuple[str, str], str] = field(default_factory=dict)
    round_trips: list[Figures] = field(default_factory=list)
    empty: list[Figures] = field(default_factory=list)
    overload: list[Figures] = field(default_factory=list)
    managed: Managed = field(default_factory=Managed)
    recovered: Recovered = field(default_factory=Recovered)
    took: float = 0.0

    def sizes(self) -> list[int]:
        """W6: the numbers of nodes."""
        return [int(nodes) for nodes in self.options["nodes"].split(",")]

    def workloads(self) -> list[str]:
        """The workloads with figures, in order."""
        return list(dict.fromkeys(workload for workload, _ in self.figures))

    def for_plots(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "figures": [[workload, name, figures] for (workload, name), figures in self.figures.items()],
            "overload": self.overload,
            "w5": self.recovered.for_plots(),
            "w6": self.managed.for_plots(),
        }


def _missing(results: Results, workload: str, contestants: list[Contestant]) -> list[str]:
    return [
        f"{each.name}: not measured: {results.problems[workload, each.name]}"
        for each in contestants
        if (workload, each.name) in results.problems
    ]


def w1_table(results: Results) -> Table:
    """Contestant, million words per second, ratio to it of Penstock, spread, note."""
    rows = [["contestant", "M words/s", "spread", "Penstock is", "how"]]
    ours = results.figures.get(("w1", PENSTOCK), {}).get("M words/s")
    for each in W1:
        figures = results.figures.get(("w1", each.name))
        if figures is None:
            continue
        rate, all_rates = figures["M words/s"], results.spread["w1", each.name]["M words/s"]
        ratio = "" if ours is None or each.name == PENSTOCK else f"{ours / rate:.2f} x"
        rows.append([each.name, f"{rate:.2f}", f"{min(all_rates):.2f} to {max(all_rates):.2f}", ratio, each.note])
    return rows


def w3_table(results: Results) -> Table:
    """One row per rate and contestant."""
    rows = [["records/s", "contestant", "p50 ms", "p99 ms", "p50 from due", "p99 from due", "achieved/s", "how"]]
    for workload in results.workloads():
        if not workload.startswith("w3"):
            continue
        for each in W3:
            figures = results.figures.get((workload, each.name))
            if figures is not None:
                shown = [f"{figures[name]:.3f}" for name in ("p50", "p99", "p50 due", "p99 due")]
                rate = workload.removeprefix("w3 at ").removesuffix("/s")
                kept_up = figures["achieved"] >= 0.97 * float(rate.replace(",", ""))
                achieved = f"{figures['achieved']:,.0f}" + ("" if kept_up else " (did not keep up)")
                rows.append([rate, each.name, *shown, achieved, each.note])
    return rows


def memory_table(results: Results) -> Table:
    """Workers' resident memory."""
    rows = [["run", "largest worker, MB", "remark"]]
    if results.empty:
        rows.append(["empty state", f"{max(each['largest'] for each in results.empty):.0f}", "target: under 120"])
    if results.overload:
        largest = [each["largest"] for each in results.overload]
        tail = largest[len(largest) // 2 :]
        rows.append(
            [
                f"fed 10 x too fast for {results.overload[-1]['seconds']:.0f} s",
                f"{max(largest):.0f}",
                f"second half of the run: {min(tail):.0f} to {max(tail):.0f}",
            ]
        )
    return rows


def targets(results: Results) -> Table:
    """What we must reach, and whether we did in this run."""
    rows = [["target", "reached", ""]]
    figures = results.figures

    def row(text: str, value: float, shown: str, reached: bool) -> None:
        rows.append([text, shown, "yes" if reached else "NO"])

    ours = figures.get(("w1", PENSTOCK), {}).get("M words/s")
    for other, least in ((LIMIT, 0.6), (BYTEWAX, 4.0)):
        theirs = figures.get(("w1", other), {}).get("M words/s")
        if ours and theirs:
            ratio = ours / theirs
            row(f"W1: at least {least:g} x {other}", ratio, f"{ratio:.2f} x", ratio >= least)
    at_10k = figures.get(("w3 at 10,000/s", PENSTOCK))
    if at_10k:
        for name, most in (("p50", 1.0), ("p99", 10.0)):
            row(f"W3: {name} under {most:g} ms at 10 k/s", at_10k[name], f"{at_10k[name]:.2f} ms", at_10k[name] < most)
    if results.empty:
        weight = max(each["largest"] for each in results.empty)
        row("memory: a worker with an empty state under 120 MB", weight, f"{weight:.0f} MB", weight < 120)
    for text, most, took in (*w5.targets(results.recovered), *report_w6.targets(results.managed)):
        row(f"{text}, at most {most:,.0f} ms", took, f"{took:.0f} ms", took <= most)
    return rows


def _text(table: Table) -> str:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _markdown(table: Table) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + " --- |" * len(table[0]), *lines[1:]])


def _sections(results: Results) -> list[tuple[str, str, Table, list[str]]]:
    w3 = dict.fromkeys(workload for workload, _ in (*results.figures, *results.problems) if workload.startswith("w3"))
    missing_w3 = [line for workload in w3 for line in _missing(results, workload, W3)]
    trips = sorted(trip["p50"] for trip in results.round_trips)
    ping = f" A raw ZeroMQ round trip: {trips[len(trips) // 2]:.3f} ms (median)." if trips else ""
    return [
        (
            "W1: word count",
            "Running count of every word, 20,000 distinct, Zipf, ten per line. Steady state: the first batch "
            "(start-up, imports, compilation) is not counted. `Penstock is`: Penstock's rate over the contestant's.",
            w1_table(results),
            _missing(results, "w1", W1),
        ),
        (
            "W3: latency through one shuffle between two processes",
            "From the source's emission of a record to its arrival at the sink in the other process, and from the "
            "moment it was due by the schedule (which also counts a late source). The first third of a run is not "
            "counted." + ping,
            w3_table(results),
            list(dict.fromkeys(missing_w3)),
        ),
        ("Memory", "Resident memory of the worker processes, by `/proc`.", memory_table(results), []),
        *_recovery_sections(results),
        *_managed_sections(results),
    ]


def _recovery_sections(results: Results) -> list[tuple[str, str, Table, list[str]]]:
    recovered = results.recovered
    return [
        (
            "W5: kill -9 in each recovery class",
            "Three real node processes, 2,000 records/s through a source, a keyed step that numbers each key's records "
            "and a sink. The worker of the keyed step's primary is killed with SIGKILL at a random moment, when every "
            "executor is protected again. The gap is the longest silence at the sink around a kill; lost and repeated "
            "are counted from the numbers, which must be 1, 2, 3 … for each key. **Nodes, workers, standbys and Valkey "
            "share the same two cores.** With `none` keys begin anew, which shows as repeats.",
            w5.kills_table(recovered),
            recovered.problems,
        ),
        (
            "W5 moves: an executor with 100 MB of state",
            "400,000 keys; the executor goes to another node while 2,000 records/s pass through it. The pause is the "
            "longest silence at the sink from the request to the end of the move.",
            w5.moves_table(recovered),
            [],
        ),
        (
            "W5 cost: the classes at full speed",
            "Word count over two nodes, all cores busy: what a standby computes or keeps is taken from the same two "
            "cores that the primaries use. With cores to spare the cost is what the primary does for its standby.",
            w5.rates_table(recovered),
            [],
        ),
    ]


def _managed_sections(results: Results) -> list[tuple[str, str, Table, list[str]]]:
    managed = results.managed
    return [
        (
            "W6: operations on models",
            "Real node processes with an embedded Valkey, as `penstock up --nodes N` starts them, **all of them, their "
            "workers and the client on the same two cores**: eight nodes do eight times the work there, which eight "
            "machines would share. From the request to the answer, or to the first record at the sink; asked of the "
            "nodes in turn, each time with the cluster at rest. `by hand`: the writes with fsync, round trips to Redis "
            "and imports without which it cannot be, in as many processes, without protocol (`bench/limit_w6.py`).",
            report_w6.operations_table(managed, results.sizes()),
            managed.problems,
        ),
        (
            "W6 units: what the pieces cost",
            "By themselves, on the same two cores.",
            report_w6.units_table(managed),
            [],
        ),
        (
            "W6 cycles: online and offline again",
            "One node, one cycle straight after the other, so that often no worker is warm yet. `before` and `after` "
            "are at rest; of times they are the medians of the first and of the last quarter. The journal remembers "
            "the idempotency keys of the latest 256 operations, and Valkey those of a day and about 10,000 events: "
            "until then these two grow. Growth: from the second quarter of the cycles to the last one.",
            report_w6.cycles_table(managed),
            [],
        ),
    ]


def console_table(results: Results) -> str:
    """Everything for the terminal."""
    parts = []
    for title, _, table, missing in _sections(results):
        if len(table) > 1:
            parts.append("\n".join([title, _text(table), *missing]))
    if len(reached := targets(results)) > 1:
        parts.append(_text(reached))
    return "\n\n".join(["", *parts, ""])


def _first_line(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return "not found"
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return (done.stdout + done.stderr).strip().splitlines()[0]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _machine(results: Results) -> Table:
    ours = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("msgspec", "pyzmq", "xxhash"))
    peers = ", ".join(version_of(peer) for peer in ("bytewax", "pathway", "spark", "flink", "ray"))
    load = os.getloadavg()
    return [
        ["what", "value"],
        ["date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")],
        ["processor", f"{_processor()}, {os.cpu_count()} cores; {results.cores}"],
        ["system", f"{platform.system()} {platform.release()}; load at the end {load[0]:.1f}"],
        ["Python", f"{platform.python_version()}; {ours}"],
        ["Java", _first_line(["java", "-version"])],
        ["peers", peers],
        ["rounds", f"{results.options['repeat']}, alternating; {results.took / 60:.1f} minutes in all"],
    ]


def _written_before(path: Path) -> dict[str, str]:
    """The sections of RESULTS.md as it is, by title; what stands before them is under the empty one."""
    if not path.exists():
        return {}
    first, *sections = path.read_text("utf-8").split("\n## ")
    return {"": first, **{section.split("\n", 1)[0]: f"## {section.strip()}" for section in sections}}


def _other_targets(before: dict[str, str], reached: Table) -> Table:
    """Rows of the table of targets that were not measured this time."""
    known = {row[0] for row in reached}
    lines = [line for line in before.get("", "").splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[1:]]
    return [row for row in rows if row[0] not in known and len(row) == len(reached[0]) and not row[0].startswith("---")]


def write_results(results: Results, directory: Path) -> Path:
    """Write RESULTS.md; its path. What was not measured this time keeps its section, its plots and its targets."""
    path = directory / "RESULTS.md"
    before = _written_before(path)
    parts = [
        "# Benchmark results",
        "Written by `make bench`. All contestants ran side by side on the same two cores, in turn, several times; "
        "figures are medians. Compare the ratios: absolute figures belong to one machine on one day. What is compared, "
        "and why, is said in the scripts: `bench/limit.py`, `bench/peers/`, `bench/penstock_*.py`.",
        _markdown([*(reached := targets(results)), *_other_targets(before, reached)]),
    ]
    plots = {"W1": "w1.png", "W3": "w3.png", "Memory": "overload.png", "W6": "w6.png", "W6 cycles": "cycles.png"}
    for title, text, table, missing in _sections(results):
        if len(table) == 1:
            parts += [before[title]] if title in before else []
            continue
        parts += [f"## {title}", text, _markdown(table), *(f"- {line}" for line in missing)]
        image = plots.get(title.split(":")[0])
        if image is not None and (directory / "plots" / image).exists():
            parts.append(f"![{title}](plots/{image})")
    parts += ["## Machine and versions", _markdown(_machine(results))]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path
