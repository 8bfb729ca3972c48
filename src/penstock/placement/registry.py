"""The placement strategies by name. A new one is a file of its own and a line here."""

from __future__ import annotations

from penstock.errors import PenstockError, UsageError
from penstock.placement.adaptive import adaptive
from penstock.placement.balance import balance
from penstock.placement.even import even
from penstock.placement.offline import offline
from penstock.placement.plan import Placement, Problem, Strategy
from penstock.placement.traffic import traffic

STRATEGIES: dict[str, Strategy] = {
    "adaptive": adaptive,
    "balance": balance,
    "even": even,
    "offline": offline,
    "traffic": traffic,
}
DEFAULT = "even"


def strategy(name: str) -> Strategy:
    """The strategy called `name`. Raises `UsageError` with the names that exist."""
    try:
        return STRATEGIES[name]
    except KeyError:
        raise UsageError(
            f"there is no placement strategy {name!r}", remedy=f"the strategies are: {', '.join(sorted(STRATEGIES))}"
        ) from None


def place(name: str, problem: Problem) -> Placement:
    """Ask a strategy and check its answer: every executor, and only these, on workers that were offered. Raises
    `UsageError` otherwise, and when the strategy itself raises, so that a faulty one never replaces a running plan."""
    chosen = strategy(name)
    try:
        placement = chosen(problem)
    except PenstockError:
        raise
    except Exception as error:
        raise UsageError(
            f"placement strategy {name!r} failed: {type(error).__name__}: {error}",
            remedy="the running plan stays; this is a fault of the strategy, use another one",
        ) from error
    offered, wanted = set(problem.workers), set(problem.executors)
    missing = sorted(wanted - placement.workers.keys())
    foreign = sorted(key for key, slot in placement.workers.items() if key not in wanted or slot not in offered)
    if missing or foreign:
        faults = [f"{key} has no worker" for key in missing[:3]] + [f"{key} is misplaced" for key in foreign[:3]]
        raise UsageError(f"placement strategy {name!r} gave no valid plan: {'; '.join(faults)}")
    return placement
