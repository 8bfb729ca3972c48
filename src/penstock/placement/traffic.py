"""Placement by measured traffic (SYSTEMS S4, S5), after the online scheduler of Aniello, Baldoni and Querzoni (DEBS
2013, section 4.2): executors to workers, then workers to nodes, both by `penstock.placement.pack`.

Unlike the published code it adds up the planned load of nodes, places what has no traffic, and gives its groups the
names that move least.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from penstock.placement.board import Board, Flows, Items, Seats, indexed
from penstock.placement.feasible import require_kept, require_possible
from penstock.placement.labels import match
from penstock.placement.pack import pack
from penstock.placement.plan import Placement, Problem
from penstock.placement.search import repair


def traffic(problem: Problem) -> Placement:
    """The greedy plan, its names matched to the running one. Raises `UsageError` when it cannot keep the limits."""
    require_possible(problem)
    names, items, seats = indexed(problem)
    board = greedy(items, seats)
    return require_kept(problem, names.placement(board))


def greedy(items: Items, seats: Seats) -> Board:
    """Both phases, the matching, and a repair of the limits that the greedy rule broke."""
    board = Board(items, seats)
    if items.flows:
        bins = _executors_to_workers(items, seats)
        for item, seat in enumerate(_workers_to_nodes(bins, items, seats)):
            board.put(item, seat)
        match(board)
        repair(board)
    return board


def _executors_to_workers(items: Items, seats: Seats) -> Board:
    """Phase one: as many workers as there are, each as if on a node of its own. Only workers that hold pinned
    executors are known by name already."""
    count = len(seats.node)
    alone = Seats(
        node=range(count),
        most=seats.most,
        gamma=seats.gamma,
        cpu=_share(seats, seats.cpu),
        memory=_share(seats, seats.memory),
        network=[inf] * count,
    )
    board = Board(items, alone)
    for item in sorted(items.pinned):
        board.put(item, items.home[item])
    pack(board)
    return board


def _share(seats: Seats, bounds: Sequence[float]) -> list[float]:
    """What a worker may take: what its node has. Workers without a name yet are as if on theirs."""
    return [bounds[node] for node in seats.node]


def _workers_to_nodes(bins: Board, items: Items, seats: Seats) -> list[int]:
    """Phase two: a seat for every item. Workers that hold pinned executors keep their place."""
    used = [k for k, held in enumerate(bins.on) if held]
    number = {k: i for i, k in enumerate(used)}
    held = {bins.at[item] for item in items.pinned}
    board = Board(_bins_as_items(bins, items, used, held, seats), _nodes_as_seats(seats))
    for k in sorted(held):
        board.put(number[k], seats.node[k])
    pack(board)
    free = [[seat for seat in own if seat not in held] for own in seats.of_node]
    place = {k: k for k in held}
    for k in used:
        if k not in held:
            node = board.at[number[k]]
            place[k] = free[node].pop(0) if free[node] else k
    return _without_doubles(bins, place)


def _without_doubles(bins: Board, place: dict[int, int]) -> list[int]:
    """A seat per item; workers that the greedy rule could not seat take what is left."""
    spare = [seat for seat in range(len(bins.on)) if seat not in place.values()]
    taken: set[int] = set()
    for k, seat in place.items():
        if seat in taken:
            place[k] = spare.pop(0)
        taken.add(place[k])
    return [place[k] for k in bins.at]


def _bins_as_items(bins: Board, items: Items, used: list[int], held: set[int], seats: Seats) -> Items:
    number = {k: i for i, k in enumerate(used)}
    flows: Flows = [{} for _ in used]
    apart: list[set[int]] = [set() for _ in used]
    for item, k in enumerate(bins.at):
        own = flows[number[k]]
        for other, flow in bins.affinity[item].items():
            if other != k:
                own[number[other]] = own.get(number[other], 0.0) + flow
        apart[number[k]] |= {number[bins.at[other]] for other in items.apart[item] if bins.at[other] != k}
    return Items(
        flows=flows,
        cpu=[bins.cpu[k] for k in used],
        memory=[bins.memory[k] for k in used],
        apart=apart,
        home=[seats.node[k] if k in held else -1 for k in used],
        price=[0.0] * len(used),
        pinned=frozenset(number[k] for k in held),
    )


def _nodes_as_seats(seats: Seats) -> Seats:
    count = len(seats.cpu)
    return Seats(
        node=range(count),
        most=[len(own) for own in seats.of_node],
        gamma=[inf] * count,
        cpu=seats.cpu,
        memory=seats.memory,
        network=seats.network,
    )
