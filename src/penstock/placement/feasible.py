"""Whether a plan keeps its limits; which one it breaks, where, and by how much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from penstock.errors import UsageError
from penstock.placement.cost import rate
from penstock.placement.limits import most_executors, nodes_used, workers_counted
from penstock.placement.plan import ExecutorKey, Placement, Problem, WorkerSlot

TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Excess:
    """One limit that is broken."""

    limit: str
    """`cpu`, `memory`, `network` (of a node), `alpha`, `gamma` (of a worker), `beta`, `delta`, `slots`, `apart`,
    `worker` (not offered)."""
    where: str
    used: float
    bound: float

    def __str__(self) -> str:
        return f"{self.limit} of {self.where}: {self.used:g}, at most {self.bound:g}"


def usable(problem: Problem) -> tuple[WorkerSlot, ...]:
    """The workers that beta, delta and the nodes' slots leave. Those in use come first, then those of larger nodes."""
    running = () if problem.current is None else problem.current.workers.items()
    busy = Counter(slot for _, slot in running)
    held = {slot for executor, slot in running if executor in problem.pinned}
    on_node = Counter(dict.fromkeys({worker.node for worker in problem.workers}, 0))
    for slot, number in busy.items():
        on_node[slot.node] += number
    pinned = {slot.node for slot in held}

    def cpus(node: str) -> float:
        return problem.nodes[node].cpus if node in problem.nodes else 0.0

    offered = sorted({worker.node for worker in problem.workers})
    order = sorted(offered, key=lambda node: (node not in pinned, -on_node[node], -cpus(node), node))
    chosen = set(order[: max(len(pinned), nodes_used(len(order), problem.limits.beta))])
    kept: list[WorkerSlot] = []
    for node in sorted(chosen):
        slots = sorted(
            (worker for worker in problem.workers if worker.node == node),
            key=lambda slot: (slot not in held, -busy[slot], slot),
        )
        kept.extend(slots[: _most_workers(problem, node, len(slots))])
    return tuple(sorted({*kept, *held}))


def _most_workers(problem: Problem, node: str, offered: int) -> int:
    bounds = [offered]
    if problem.limits.delta is not None:
        bounds.append(problem.limits.delta)
    if node in problem.nodes and problem.nodes[node].slots:
        bounds.append(problem.nodes[node].slots)
    return min(bounds)


def excesses(problem: Problem, placement: Placement) -> tuple[Excess, ...]:
    """Every limit that the plan breaks. Executors that it leaves out do not count."""
    return (*_on_workers(problem, placement), *_on_nodes(problem, placement), *_apart(problem, placement))


def _over(used: float, bound: float) -> bool:
    return used > bound * (1 + TOLERANCE) + TOLERANCE


def _on_workers(problem: Problem, placement: Placement) -> Iterator[Excess]:
    offered = set(problem.workers)
    counted = workers_counted(len(problem.executors), len(usable(problem)))
    most = most_executors(len(problem.executors), counted, problem.limits.alpha)
    count: Counter[WorkerSlot] = Counter()
    load: dict[WorkerSlot, float] = {}
    for executor, slot in placement.workers.items():
        count[slot] += 1
        load[slot] = load.get(slot, 0.0) + _cpu(problem, executor)
    for slot in sorted(count):
        if slot not in offered:
            yield Excess("worker", str(slot), count[slot], 0)
        if count[slot] > most:
            yield Excess("alpha", f"worker {slot}", count[slot], most)
        if _over(load[slot], problem.limits.gamma):
            yield Excess("gamma", f"worker {slot}", load[slot], problem.limits.gamma)


def _cpu(problem: Problem, executor: ExecutorKey) -> float:
    return problem.load[executor].cpu if executor in problem.load else 0.0


def _on_nodes(problem: Problem, placement: Placement) -> Iterator[Excess]:
    used = used_resources(problem, placement)
    offered = {worker.node for worker in problem.workers}
    allowed = nodes_used(len(offered), problem.limits.beta)
    allowed = max(allowed, len({placement.workers[key].node for key in problem.pinned if key in placement.workers}))
    if len(used) > allowed:
        yield Excess("beta", "the nodes in use", len(used), allowed)
    workers = Counter(slot.node for slot in set(placement.workers.values()))
    for node in sorted(used):
        if problem.limits.delta is not None and workers[node] > problem.limits.delta:
            yield Excess("delta", f"node {node}", workers[node], problem.limits.delta)
        capacity = problem.nodes.get(node)
        if capacity is None:
            continue
        if capacity.slots and workers[node] > capacity.slots:
            yield Excess("slots", f"node {node}", workers[node], capacity.slots)
        for resource, amount in zip(RESOURCES, used[node], strict=True):
            bound = bound_of(problem, node, resource)
            if _over(amount, bound):
                yield Excess(resource, f"node {node}", amount, bound)


RESOURCES = ("cpu", "memory", "network")


def bound_of(problem: Problem, node: str, resource: str) -> float:
    """What executors may use of a node's resource, in its unit; infinite when nothing is known."""
    capacity = problem.nodes.get(node)
    if capacity is None:
        return float("inf")
    amount = {"cpu": capacity.cpus, "memory": capacity.memory, "network": capacity.network}[resource]
    if resource != "cpu" and not amount:
        return float("inf")
    return amount * problem.limits.fill


def used_resources(problem: Problem, placement: Placement) -> dict[str, tuple[float, float, float]]:
    """CPU (cores), memory (bytes) and network (bytes/s in and out) that the executors use of each node in use."""
    used: dict[str, list[float]] = {}
    for executor, slot in placement.workers.items():
        own = used.setdefault(slot.node, [0.0, 0.0, 0.0])
        if executor in problem.load:
            own[0] += problem.load[executor].cpu
            own[1] += problem.load[executor].memory
    for (producer, consumer), flow in problem.traffic.items():
        source, target = placement.workers.get(producer), placement.workers.get(consumer)
        if source is not None and target is not None and source.node != target.node:
            used[source.node][2] += rate(flow)
            used[target.node][2] += rate(flow)
    return {node: (own[0], own[1], own[2]) for node, own in used.items()}


def _apart(problem: Problem, placement: Placement) -> Iterator[Excess]:
    for one, other in problem.apart:
        first, second = placement.workers.get(one), placement.workers.get(other)
        if first is not None and second is not None and first.node == second.node:
            yield Excess("apart", f"{one} and {other} on node {first.node}", 2, 1)


def require_possible(problem: Problem) -> None:
    """Raise `UsageError`, naming the limit, when it is plain that no plan can keep the limits."""
    if not problem.executors:
        return
    workers = usable(problem)
    nodes = sorted({worker.node for worker in workers})
    for resource in ("cpu", "memory"):
        sizes = {key: float(getattr(problem.load[key], resource)) for key in problem.executors if key in problem.load}
        bounds = [bound_of(problem, node, resource) for node in nodes]
        _require_room(resource, sizes, bounds, f"the {len(nodes)} nodes in use")
        if resource == "cpu":
            _require_room("gamma", sizes, [problem.limits.gamma] * len(workers), f"{len(workers)} workers")
    if problem.apart and len(nodes) < 2:
        one, other = problem.apart[0]
        raise _impossible(f"{one} and {other} must not share a node, and only node {nodes[0]} may be used", "apart")


def _require_room(limit: str, sizes: dict[ExecutorKey, float], bounds: list[float], where: str) -> None:
    for executor, size in sizes.items():
        if _over(size, max(bounds)):
            raise _impossible(
                f"executor {executor} needs {size:g}, the most that fits anywhere is {max(bounds):g}", limit
            )
    if _over(sum(sizes.values()), sum(bounds)):
        raise _impossible(f"the executors need {sum(sizes.values()):g}, {where} have room for {sum(bounds):g}", limit)


def _impossible(cause: str, limit: str) -> UsageError:
    return UsageError(
        f"no placement keeps the limit {limit}: {cause}", remedy="add nodes, or raise the limit; see docs/placement.md"
    )


def require_kept(problem: Problem, placement: Placement) -> Placement:
    """The plan, when it keeps all limits. Raises `UsageError` that names those it breaks."""
    broken = excesses(problem, placement)
    if broken:
        raise UsageError(
            f"no placement was found that keeps every limit; the best one breaks: {_listed(broken)}",
            remedy="add nodes, or raise the limit; see docs/placement.md",
        )
    return placement


def _listed(broken: Iterable[Excess]) -> str:
    texts = [str(excess) for excess in broken]
    return "; ".join(texts[:3]) + (f"; and {len(texts) - 3} more" if len(texts) > 3 else "")
