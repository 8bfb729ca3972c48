"""The bounds that a plan keeps (SYSTEMS S7, after Aniello, Baldoni and Querzoni, DEBS 2013, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, isnan

from penstock.errors import UsageError


@dataclass(frozen=True, slots=True)
class Limits:
    """Hard bounds on a plan. Raises `UsageError` for a bound that makes no sense."""

    alpha: float | None = 0.2
    """How uneven the numbers of executors per worker may be: 0 = as even as they can be, 1 = all workers but one have a
    single executor; `None` = executors are not counted."""
    beta: float = 1.0
    """The share of the offered nodes that may be used; at least one node is."""
    gamma: float = inf
    """The CPU load that a worker may have, in cores."""
    delta: int | None = None
    """How many workers a node may run; `None` = as many as it offers."""
    fill: float = 1.0
    """The share of a node's CPU, memory and network that may be used."""

    def __post_init__(self) -> None:
        for name, value, fine, rule in (
            ("alpha", self.alpha, self.alpha is None or 0 <= self.alpha <= 1, "from 0 to 1, or None"),
            ("beta", self.beta, 0 < self.beta <= 1, "above 0, at most 1"),
            ("gamma", self.gamma, self.gamma > 0 and not isnan(self.gamma), "a number of cores above 0"),
            ("delta", self.delta, self.delta is None or self.delta >= 1, "at least 1, or None"),
            ("fill", self.fill, 0 < self.fill <= 1, "above 0, at most 1"),
        ):
            if not fine:
                raise UsageError(f"the placement limit {name} cannot be {value}", remedy=f"it is {rule}")


def most_executors(executors: int, workers: int, alpha: float | None) -> int:
    """K, the executors that a worker may have: m + ceil(alpha (M - m)), m = ceil(E / W), M = E - W + 1."""
    if alpha is None or not executors:
        return max(1, executors)
    fewest = ceil(executors / workers)
    return fewest + ceil(alpha * max(0, executors - workers + 1 - fewest) - 1e-9)


def workers_counted(executors: int, workers: int) -> int:
    """W of `most_executors`. A worker need not be used here, so it counts only while each can have two executors:
    otherwise a small model on a large cluster would have to have each executor on a node of its own."""
    return max(1, min(workers, executors // 2))


def nodes_used(nodes: int, beta: float) -> int:
    """How many of the offered nodes a plan may use."""
    return max(1, ceil(beta * nodes - 1e-9))
