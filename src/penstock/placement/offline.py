"""Placement before anything runs (SYSTEMS S2), from the graph's structure alone, after the offline scheduler of
Aniello, Baldoni and Querzoni (DEBS 2013, section 4.1).

Stages in an order in which producers come before consumers; each executor joins the worker that holds most of the
executors it receives from, as long as that worker may have more and enough are left for the other workers.
"""

from __future__ import annotations

from penstock.placement.board import Board, indexed
from penstock.placement.even import spread
from penstock.placement.feasible import require_kept, require_possible
from penstock.placement.labels import match
from penstock.placement.limits import workers_counted
from penstock.placement.plan import ExecutorKey, Placement, Problem
from penstock.placement.search import repair

_Stage = tuple[str, int]


def offline(problem: Problem) -> Placement:
    """Place by `problem.links` (without them, by who has exchanged anything). Pinned executors stay. Raises
    `UsageError` when the plan cannot keep the limits."""
    require_possible(problem)
    names, items, seats = indexed(problem)
    board = Board(items, seats)
    links = problem.links or tuple(sorted(problem.traffic))
    number = {executor: i for i, executor in enumerate(names.executors)}
    producers: list[list[int]] = [[] for _ in number]
    for producer, consumer in links:
        if producer in number and consumer in number:
            producers[number[consumer]].append(number[producer])
    for item in sorted(items.pinned):
        board.put(item, items.home[item])
    order = {worker: rank for rank, worker in enumerate(spread(names.workers))}
    ranks = [order[worker] for worker in names.workers]
    waiting = [number[key] for key in linear(problem.executors, links) if board.at[number[key]] < 0]
    for done, item in enumerate(waiting):
        board.put(item, _seat(board, item, producers[item], ranks, len(waiting) - done))
    if problem.executors:
        match(board)
        repair(board)
    return require_kept(problem, names.placement(board))


def linear(executors: tuple[ExecutorKey, ...], links: tuple[tuple[ExecutorKey, ExecutorKey], ...]) -> list[ExecutorKey]:
    """The executors, stage by stage, producers first; stages that do not depend on each other by name and number."""
    stages: dict[_Stage, list[ExecutorKey]] = {}
    for key in sorted(executors):
        stages.setdefault((key.model, key.stage), []).append(key)
    before: dict[_Stage, set[_Stage]] = {stage: set() for stage in stages}
    for producer, consumer in links:
        source, target = (producer.model, producer.stage), (consumer.model, consumer.stage)
        if source in stages and target in stages and source != target:
            before[target].add(source)
    found: list[ExecutorKey] = []
    while before:
        ready = sorted(stage for stage, sources in before.items() if not sources & before.keys())
        for stage in ready or [min(before)]:
            found += stages[stage]
            del before[stage]
    return found


def _seat(board: Board, item: int, producers: list[int], ranks: list[int], left: int) -> int:
    """Where an executor goes; `left` executors, itself included, have no worker yet."""
    empty = [seat for seat in range(len(board.on)) if not board.on[seat]]
    wanted = workers_counted(len(board.at), len(board.on)) - (len(board.on) - len(empty))
    choice = empty if left <= wanted else list(range(len(board.on)))
    fitting = [seat for seat in choice if board.fits(item, seat)] or [
        seat for seat in range(len(board.on)) if board.fits(item, seat)
    ]

    def rank(seat: int) -> tuple[int, int, int]:
        return (-sum(board.at[p] == seat for p in producers), len(board.on[seat]), ranks[seat])

    return min(fitting or range(len(board.on)), key=rank)
