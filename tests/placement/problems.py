"""Small problems for tests, and a Hypothesis strategy of arbitrary ones."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.placement.limits import Limits
from penstock.placement.plan import (
    ExecutorKey,
    ExecutorLoad,
    NodeCapacity,
    Placement,
    Problem,
    Traffic,
    WorkerSlot,
    executor_keys,
)
from penstock.placement.registry import place


def keys(count: int) -> tuple[ExecutorKey, ...]:
    """Executors of as many stages."""
    return executor_keys("m", dict.fromkeys(range(count), 1))


def slots(**nodes: int) -> tuple[WorkerSlot, ...]:
    """Workers, so many per node."""
    return tuple(WorkerSlot(node, slot) for node, count in nodes.items() for slot in range(count))


def flows(executors: tuple[ExecutorKey, ...], rates: Mapping[tuple[int, int], float]) -> dict:
    """Traffic of so many kB/s between executors by their numbers."""
    return {(executors[i], executors[j]): Traffic(0.0, kilobytes * 1000.0) for (i, j), kilobytes in rates.items()}


def capacities(cpus: float, *nodes: str, **fields: float) -> dict[str, NodeCapacity]:
    """Equal nodes."""
    return {node: NodeCapacity(node, cpus=cpus, **fields) for node in nodes}


def on(problem: Problem, placement: Placement) -> list[str]:
    """The executors' nodes, in order."""
    return [placement.workers[key].node for key in sorted(problem.executors)]


def together(placement: Placement) -> set[frozenset[ExecutorKey]]:
    """Which executors share a node, whatever it is called."""
    groups: dict[str, set[ExecutorKey]] = {}
    for key, slot in placement.workers.items():
        groups.setdefault(slot.node, set()).add(key)
    return {frozenset(group) for group in groups.values()}


def planned(name: str, problem: Problem) -> Placement | None:
    """A strategy's plan; `None` when it names a limit that cannot be kept. Anything else that it raises is a fault."""
    try:
        return place(name, problem)
    except UsageError as error:
        if "limit" not in str(error):
            raise
        return None


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Anything that a cluster could ask, also what cannot be done."""
    executors = keys(draw(st.integers(0, 10)))
    nodes = [f"n{i}" for i in range(draw(st.integers(1, 4)))]
    workers = tuple(WorkerSlot(node, slot) for node in nodes for slot in range(draw(st.integers(1, 2))))
    pairs = [(one, other) for one in executors for other in executors if one != other]
    some = st.lists(st.sampled_from(pairs), max_size=20, unique=True) if pairs else st.just([])
    rates = st.floats(0, 1e6, allow_nan=False)
    traffic = {pair: Traffic(draw(rates), draw(rates)) for pair in draw(some)}
    load = {
        key: ExecutorLoad(draw(st.floats(0, 1)), draw(st.integers(0, 100)), draw(st.integers(0, 10**7)))
        for key in executors
        if draw(st.booleans())
    }
    running = {key: draw(st.sampled_from(workers)) for key in executors if draw(st.booleans())}
    capacity = {
        node: NodeCapacity(
            node,
            cpus=draw(st.floats(0.5, 6)),
            memory=draw(st.sampled_from((0, 150, 400))),
            network=draw(st.sampled_from((0.0, 0.0, 1e6))),
        )
        for node in nodes
        if draw(st.booleans())
    }
    pinned = frozenset(draw(st.lists(st.sampled_from(sorted(running)), max_size=2))) if running else frozenset()
    return Problem(
        executors=executors,
        workers=workers,
        nodes=capacity,
        load=load,
        traffic=traffic,
        current=Placement(running) if draw(st.booleans()) or pinned else None,
        apart=tuple(draw(st.lists(st.sampled_from(pairs), max_size=2))) if pairs else (),
        pinned=pinned,
        limits=Limits(
            alpha=draw(st.sampled_from((None, 0.0, 0.2, 1.0))),
            beta=draw(st.sampled_from((0.3, 1.0))),
            gamma=draw(st.sampled_from((1.5, float("inf")))),
            delta=draw(st.sampled_from((None, 1))),
        ),
    )
