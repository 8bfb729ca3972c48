"""What a plan costs: the traffic between nodes, and the price of what would have to move."""

from __future__ import annotations

from penstock.placement.plan import ExecutorKey, Placement, Problem, Traffic

RECORD_OVERHEAD = 32.0
"""Bytes that a record costs between nodes besides its content: its part of headers, copying and waking up."""
MOVE_OVERHEAD = 64 * 1024
"""Bytes that a move costs besides the state: it stops an executor for a moment."""


def rate(traffic: Traffic) -> float:
    """One number for a flow, in bytes per second."""
    return traffic.bytes + RECORD_OVERHEAD * traffic.records


def move_bytes(problem: Problem, executor: ExecutorKey) -> int:
    """What a move of the executor costs, in bytes."""
    load = problem.load.get(executor)
    return MOVE_OVERHEAD + (0 if load is None else load.state)


def total(problem: Problem) -> Traffic:
    """All traffic between executors of the problem."""
    return _sum(problem, None)


def cut(problem: Problem, placement: Placement) -> Traffic:
    """The traffic between nodes. Executors that the plan does not have do not count."""
    return _sum(problem, placement)


def _sum(problem: Problem, placement: Placement | None) -> Traffic:
    records = volume = 0.0
    for (producer, consumer), flow in problem.traffic.items():
        if placement is not None:
            source, target = placement.workers.get(producer), placement.workers.get(consumer)
            if source is None or target is None or source.node == target.node:
                continue
        records += flow.records
        volume += flow.bytes
    return Traffic(records, volume)


def moved(problem: Problem, placement: Placement) -> int:
    """Bytes that the moves from the running plan cost."""
    if problem.current is None:
        return 0
    return sum(move_bytes(problem, executor) for executor in problem.current.moves(placement))


def objective(problem: Problem, placement: Placement) -> float:
    """Bytes per second: traffic between nodes, plus what has to move spread over the problem's horizon."""
    return rate(cut(problem, placement)) + moved(problem, placement) / problem.horizon
