"""Transfer by resources (SYSTEMS Z5): when a node has too much of one resource, the executor that uses most of it goes
where the nodes become most alike; so does one of a worker that has too much CPU. Traffic between executors does not
count, except as use of the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from penstock.placement.cost import rate
from penstock.placement.even import even
from penstock.placement.feasible import (
    RESOURCES,
    TOLERANCE,
    Excess,
    bound_of,
    excesses,
    usable,
    used_resources,
)
from penstock.placement.plan import ExecutorKey, Placement, Problem, WorkerSlot

Vector: TypeAlias = tuple[float, float, float]
"""CPU, memory and network, as shares of what may be used."""


WORKER = "worker"
"""The resource that `Limits.gamma` bounds: the CPU of one worker."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Move this executor."""

    executor: ExecutorKey
    source: WorkerSlot
    target: WorkerSlot
    resource: str
    """The one that its node, or its worker, has too much of."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """The node has too much, and nothing of it fits elsewhere: throttle its input, or add nodes."""

    node: str
    resource: str
    used: float
    bound: float
    """In the resource's unit."""
    nearest: str
    """Where the least is missing."""
    limit: str
    """The limit of `nearest` that is in the way."""

    def __str__(self) -> str:
        what = "cores of one worker" if self.resource == WORKER else self.resource
        return (
            f"node {self.node} uses {self.used:g} of {self.bound:g} {what}, and no executor of it fits on"
            f" another node: the limit is {self.limit} of node {self.nearest or self.node}"
        )


@dataclass(frozen=True, slots=True)
class _Over:
    """Too much of a resource: of a node, or of one worker."""

    node: str
    resource: str
    used: float
    bound: float
    worker: WorkerSlot | None = None

    @property
    def rank(self) -> tuple[float, str, str]:
        return (-self.used / max(self.bound, TOLERANCE), self.node, self.resource)

    def holds(self, slot: WorkerSlot) -> bool:
        return slot == self.worker if self.worker is not None else slot.node == self.node


def transfer(problem: Problem, placement: Placement) -> Transfer | Blocked | None:
    """One step for the most overloaded node or worker; `None` when every one is within its bounds."""
    blocked: Blocked | None = None
    for over in sorted(_overloads(problem, placement), key=lambda over: over.rank):
        found = _relief(problem, placement, over)
        if isinstance(found, Transfer):
            return found
        blocked = blocked or found
    return blocked


def _overloads(problem: Problem, placement: Placement) -> list[_Over]:
    found = [
        _Over(node, resource, amount, bound_of(problem, node, resource))
        for node, amounts in used_resources(problem, placement).items()
        for amount, resource in zip(amounts, RESOURCES, strict=True)
    ]
    workers: dict[WorkerSlot, float] = {}
    for key, slot in placement.workers.items():
        workers[slot] = workers.get(slot, 0.0) + _use(problem, key, WORKER)
    found += [_Over(slot.node, WORKER, used, problem.limits.gamma, slot) for slot, used in workers.items()]
    return [over for over in found if over.used > over.bound * (1 + TOLERANCE) + TOLERANCE]


def _relief(problem: Problem, placement: Placement, over: _Over) -> Transfer | Blocked:
    users = sorted(
        (key for key, slot in placement.workers.items() if over.holds(slot) and key not in problem.pinned),
        key=lambda key: (-_use(problem, key, over.resource), key),
    )
    before = {(excess.limit, excess.where): excess.used for excess in excesses(problem, placement)}
    obstacle: tuple[float, str, str] | None = None
    for executor in users:
        if _use(problem, executor, over.resource) <= 0:
            break
        options = []
        for target in _targets(problem, placement, over):
            after = Placement({**placement.workers, executor: target})
            worse = _worse(problem, after, before)
            if worse is None:
                options.append((_deviation(problem, after), target))
            elif obstacle is None or worse[0] < obstacle[0]:
                obstacle = (worse[0], target.node, worse[1].limit)
        if options:
            return Transfer(executor, placement.workers[executor], min(options)[1], over.resource)
    _, nearest, limit = obstacle or (0.0, "", over.resource)
    return Blocked(over.node, over.resource, over.used, over.bound, nearest, limit)


def _use(problem: Problem, executor: ExecutorKey, resource: str) -> float:
    if resource == "network":
        return sum(rate(flow) for pair, flow in problem.traffic.items() if executor in pair)
    load = problem.load.get(executor)
    return 0.0 if load is None else float(load.cpu if resource == WORKER else getattr(load, resource))


def _targets(problem: Problem, placement: Placement, over: _Over) -> list[WorkerSlot]:
    """Of every other node the worker with fewest executors; when a worker has too much, of its own node too."""
    count: dict[WorkerSlot, int] = {}
    for slot in placement.workers.values():
        count[slot] = count.get(slot, 0) + 1
    best: dict[str, WorkerSlot] = {}
    for slot in usable(problem):
        if not over.holds(slot):
            old = best.get(slot.node)
            if old is None or (count.get(slot, 0), slot) < (count.get(old, 0), old):
                best[slot.node] = slot
    return sorted(best.values())


def _worse(problem: Problem, after: Placement, before: Mapping[tuple[str, str], float]) -> tuple[float, Excess] | None:
    """The greatest breach of a limit that a transfer would bring or make greater, as a share of the limit."""
    found = [
        ((excess.used - excess.bound) / max(excess.bound, TOLERANCE), excess)
        for excess in excesses(problem, after)
        if excess.used > before.get((excess.limit, excess.where), 0.0) + TOLERANCE
    ]
    return max(found, key=lambda entry: (entry[0], str(entry[1]))) if found else None


def vectors(problem: Problem, placement: Placement) -> dict[str, Vector]:
    """What every node uses, as shares of what may be used; a resource without a bound counts as unused."""
    used = used_resources(problem, placement)
    found: dict[str, Vector] = {}
    for node in sorted({worker.node for worker in usable(problem)} | used.keys()):
        amounts = used.get(node, (0.0, 0.0, 0.0))
        cpu, memory, network = (
            amount / max(bound_of(problem, node, resource), TOLERANCE)
            for amount, resource in zip(amounts, RESOURCES, strict=True)
        )
        found[node] = (cpu, memory, network)
    return found


def _deviation(problem: Problem, placement: Placement) -> float:
    """The sum of squared deviations of the nodes' vectors from their mean vector."""
    nodes = list(vectors(problem, placement).values())
    mean: list[float] = [sum(values) / len(nodes) for values in zip(*nodes, strict=True)]
    return sum((value - middle) * (value - middle) for node in nodes for value, middle in zip(node, mean, strict=True))


def balance(problem: Problem) -> Placement:
    """The running plan with new executors spread evenly, and transfers until no node has too much or nothing fits any
    more: `transfer` on the result then says what the limit is. An overloaded cluster is no error here."""
    placement = even(problem)
    for _ in range(len(problem.executors)):
        step = transfer(problem, placement)
        if not isinstance(step, Transfer):
            break
        placement = Placement({**placement.workers, step.executor: step.target})
    return placement
