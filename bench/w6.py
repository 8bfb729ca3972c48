"""The rounds of W6: runs of `penstock_w6.py` and `limit_w6.py` in turn, and what they reported."""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.environments import Unavailable
from bench.race import race

NODES = (1, 3, 8)
OPERATIONS_DEADLINE = 420.0
"""Seconds for the start of a cluster and all its operations."""
CYCLE_DEADLINE = 5.0
"""Seconds for one cycle of online and offline."""
Samples = dict[tuple[str, int], list[float]]
"""(what, nodes) -> milliseconds, of all rounds."""


@dataclass
class Managed:
    """Everything that was measured of W6."""

    penstock: Samples = field(default_factory=lambda: defaultdict(list))
    by_hand: Samples = field(default_factory=lambda: defaultdict(list))
    units: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Unit -> milliseconds, of all rounds."""
    cycles: list[dict[str, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def median(self, what: str, nodes: int) -> float | None:
        """Of Penstock; `None`: not measured."""
        values = self.penstock.get((what, nodes))
        return statistics.median(values) if values else None

    def for_plots(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "operations": [[what, nodes, values] for (what, nodes), values in self.penstock.items()],
            "by_hand": [[what, nodes, values] for (what, nodes), values in self.by_hand.items()],
            "cycles": self.cycles,
        }


def one_round(managed: Managed, sizes: Sequence[int], models: int) -> None:
    """Penstock and the limit in turn, for every number of nodes."""
    for fact in _run(managed, "units", ["bench.limit_w6", "units"]):
        managed.units[fact["unit"]].append(fact["ms"])
    for nodes in sizes:
        for name, samples, command in (
            ("Penstock", managed.penstock, ["bench.penstock_w6", "operations", str(nodes), str(models)]),
            ("limit: by hand", managed.by_hand, ["bench.limit_w6", "operations", str(nodes)]),
        ):
            label = f"w6 {name}, {nodes} node{'s' * (nodes > 1)}"
            taken: Samples = defaultdict(list)
            for fact in _run(managed, label, command):
                taken[fact["what"], nodes].append(fact["ms"])
            for place, values in taken.items():
                samples[place] += values
            shown = ", ".join(f"{what} {statistics.median(values):.0f}" for (what, _), values in taken.items())
            print(f"  {label}, ms: {shown}", flush=True)


def cycle(managed: Managed, number: int) -> None:
    """Online and offline again, so many times."""
    command = ["bench.penstock_w6", "cycles", str(number)]
    managed.cycles = _run(managed, "w6 cycles", command, OPERATIONS_DEADLINE + number * CYCLE_DEADLINE)
    print(f"  w6 cycles: {len(managed.cycles)} observations", flush=True)


def _run(
    managed: Managed, label: str, command: list[str], deadline: float = OPERATIONS_DEADLINE
) -> list[dict[str, Any]]:
    """What one run reported; a run that failed is named with its last words, and what it reported before counts."""
    try:
        with race([[sys.executable, "-m", *command]], {}, deadline) as run:
            problem, facts = run.problem, run.facts
    except Unavailable as error:
        problem, facts = str(error), []
    if problem:
        managed.problems.append(f"{label}: {problem}")
        print(f"  {managed.problems[-1]}", flush=True)
    return facts
