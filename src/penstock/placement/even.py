"""The baseline (SYSTEMS S1): executors in turn over workers, workers in turn over nodes; what traffic flows is ignored.

Like Storm's default scheduler as Aniello, Baldoni and Querzoni describe it (DEBS 2013, section 2), except that
executors which run already stay where they are as long as their worker exists.
"""

from __future__ import annotations

from penstock.placement.plan import ExecutorKey, Placement, Problem, WorkerSlot


def spread(workers: tuple[WorkerSlot, ...]) -> list[WorkerSlot]:
    """Workers in an order that takes one of every node before it takes a second one of any."""
    by_node: dict[str, list[WorkerSlot]] = {}
    for worker in sorted(workers):
        by_node.setdefault(worker.node, []).append(worker)
    rank = {worker: place for own in by_node.values() for place, worker in enumerate(own)}
    return sorted(workers, key=lambda worker: (rank[worker], worker.node))


def even(problem: Problem) -> Placement:
    """Every executor that has no worker goes, in order, to the worker that has fewest."""
    order = spread(problem.workers)
    filled = dict.fromkeys(order, 0)
    placed: dict[ExecutorKey, WorkerSlot] = {}
    running = {} if problem.current is None else problem.current.workers
    for executor in problem.executors:
        slot = running.get(executor)
        if slot is not None and slot in filled:
            placed[executor] = slot
            filled[slot] += 1
    for executor in sorted(problem.executors):
        if executor not in placed:
            slot = min(order, key=filled.__getitem__)
            placed[executor] = slot
            filled[slot] += 1
    return Placement(placed)
