"""The placement for running models: the greedy plan by traffic and the running plan, both improved by local search,
and of the two the cheaper.

What is minimised is `penstock.placement.cost.objective`: traffic between nodes, plus the bytes that moves carry spread
over the problem's horizon. The limits are never traded for it. A plan that is not cheaper than the running one is not
proposed, so equal plans do not take turns.
"""

from __future__ import annotations

from penstock.placement.board import Board, indexed
from penstock.placement.feasible import require_kept, require_possible
from penstock.placement.pack import place_rest
from penstock.placement.plan import Placement, Problem
from penstock.placement.search import improve, repair, shake
from penstock.placement.traffic import greedy

SHAKES = (60, 200)
"""Attempts to leave a local optimum, for each of the two starts: of a large problem, and of a small one."""


def adaptive(problem: Problem) -> Placement:
    """The cheapest plan found. Raises `UsageError`, naming the limit, when none keeps them all."""
    require_possible(problem)
    if not problem.executors:
        return Placement({})
    names, items, seats = indexed(problem)
    starts = [Board(items, seats)]
    if problem.current is not None:
        names.fill(starts[0], problem.current)
    place_rest(starts[0])
    repair(starts[0])
    starts.append(greedy(items, seats))
    ranked = []
    for number, board in enumerate(starts):
        improve(board)
        shake(board, min(SHAKES[1], max(SHAKES[0], 10_000 // len(board.at))))
        ranked.append((board.strain(), board.cost(), number))
    strain, cost, number = min(ranked)
    if ranked[0][0] <= strain and ranked[0][1] <= cost + max(1e-9, starts[0].least_flow * 1e3):
        number = 0  # of plans that cost the same, the one that began with what runs
    return require_kept(problem, names.placement(starts[number]))
