"""The oracle: the cheapest plan of a small problem by branch and bound, written apart from the code under test."""

from __future__ import annotations

from random import Random

from penstock.placement.cost import move_bytes, objective, rate
from penstock.placement.feasible import excesses
from penstock.placement.limits import Limits
from penstock.placement.plan import ExecutorKey, ExecutorLoad, NodeCapacity, Placement, Problem, Traffic, WorkerSlot

DETERMINED = ("apart", "cpu", "memory", "gamma", "alpha", "worker", "delta", "slots", "beta")
"""Limits that more executors can only break more; the network is judged at the end."""


def cheapest(problem: Problem) -> tuple[float, Placement] | None:
    """The least objective of all plans that keep the limits, and such a plan; `None` when there is none."""
    order = sorted(problem.executors)
    running = {} if problem.current is None else problem.current.workers
    best: list[tuple[float, Placement]] = []

    def descend(depth: int, placed: dict[ExecutorKey, WorkerSlot], cost: float) -> None:
        if best and cost >= best[0][0] - 1e-9:
            return
        broken = excesses(problem, Placement(placed))
        if any(excess.limit in DETERMINED for excess in broken):
            return
        if depth == len(order):
            if not broken:
                best[:] = [(cost, Placement(dict(placed)))]
            return
        key = order[depth]
        for slot in problem.workers:
            if key in problem.pinned and running[key] != slot:
                continue
            more = move_bytes(problem, key) / problem.horizon if running.get(key, slot) != slot else 0.0
            for (one, other), flow in problem.traffic.items():
                if key in (one, other) and one != other:
                    mate = placed.get(other if key == one else one)
                    if mate is not None and mate.node != slot.node:
                        more += rate(flow)
            placed[key] = slot
            descend(depth + 1, placed, cost + more)
            del placed[key]

    descend(0, {}, 0.0)
    if not best:
        return None
    assert abs(best[0][0] - objective(problem, best[0][1])) < 1e-6 * max(1.0, best[0][0])
    return best[0]


def random_problem(seed: int, *, tight: bool = True) -> Problem:
    """Up to 8 executors on 2 or 3 nodes, with traffic, state, a running plan, and limits that bind."""
    random = Random(seed)
    keys = [ExecutorKey("m", i // 2, i % 2) for i in range(random.randint(4, 8))]
    nodes = [f"n{i}" for i in range(random.randint(2, 3))]
    load = {
        key: ExecutorLoad(
            cpu=random.choice((0.2, 0.4, 0.6, 0.8)),
            memory=random.randint(1, 8),
            state=random.choice((0, 10_000, 3_000_000)),
        )
        for key in keys
    }
    traffic = {
        (one, other): Traffic(float(random.randint(1, 300)), float(random.randint(100, 200_000)))
        for one in keys
        for other in keys
        if one.stage < other.stage and random.random() < 0.5
    }
    need = sum(own.cpu for own in load.values()) / len(nodes)
    spare = random.uniform(1.3, 2.0) if tight else 10.0
    capacity = {
        node: NodeCapacity(node, cpus=max(0.8, need * spare), memory=random.choice((0, 40)), network=0.0)
        for node in nodes
    }
    current = Placement({key: WorkerSlot(random.choice(nodes), 0) for key in keys if random.random() < 0.9})
    return Problem(
        executors=tuple(keys),
        workers=tuple(WorkerSlot(node, 0) for node in nodes),
        nodes=capacity,
        load=load,
        traffic=traffic,
        current=current if random.random() < 0.8 else None,
        apart=((keys[0], keys[1]),) if random.random() < 0.5 else (),
        limits=Limits(alpha=random.choice((None, 0.2, 0.5))),
    )
