"""Which of the interchangeable names a plan's parts get: those that move the least of what runs.

A strategy that plans from nothing finds out which executors belong together, not where; unless its parts are matched
to the running plan, nearly everything moves although nearly nothing has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from penstock.placement.board import Board, slack


def assign(cost: Sequence[Sequence[float]]) -> list[int]:
    """A column for every row, no column twice, with the least sum (the assignment problem; Kuhn 1955, in the form with
    potentials and shortest augmenting paths, O(rows^2 columns)). There must be at least as many columns as rows;
    entries that are infinite are taken only when nothing else is left."""
    rows, columns = len(cost), len(cost[0]) if cost else 0
    if rows > columns:
        raise ValueError(f"{rows} rows cannot have a column each: there are {columns}")
    finite = sum(abs(value) for row in cost for value in row if value != inf)
    table = [[value if value != inf else 2 * finite + 1 for value in row] for row in cost]
    potential_row, potential_column = [0.0] * (rows + 1), [0.0] * (columns + 1)
    owner = [0] * (columns + 1)
    """column -> its row; both count from 1, 0 = none"""
    for row in range(1, rows + 1):
        owner[0] = row
        for before, column in _shortest_path(table, row, owner, potential_row, potential_column):
            owner[column] = owner[before]
    found = [-1] * rows
    for column in range(1, columns + 1):
        if owner[column]:
            found[owner[column] - 1] = column - 1
    return found


def _shortest_path(
    table: list[list[float]], row: int, owner: list[int], rows: list[float], columns: list[float]
) -> list[tuple[int, int]]:
    """The columns from a free one back to `row`, as (previous, column) steps; the potentials are updated on the way."""
    size = len(columns)
    shortest, previous, done = [inf] * size, [0] * size, [False] * size
    column = 0
    while owner[column]:
        done[column] = True
        current, best, nearest = owner[column], inf, 0
        costs, base = table[current - 1], rows[current]
        for j in range(1, size):
            if not done[j]:
                reduced = costs[j - 1] - base - columns[j]
                if reduced < shortest[j]:
                    shortest[j], previous[j] = reduced, column
                if shortest[j] < best:
                    best, nearest = shortest[j], j
        for j in range(size):
            if done[j]:
                rows[owner[j]] += best
                columns[j] -= best
            else:
                shortest[j] -= best
        column = nearest
    steps: list[tuple[int, int]] = []
    while column:
        steps.append((previous[column], column))
        column = previous[column]
    return steps


def match(board: Board) -> None:
    """Rename the nodes and seats of a complete board so that the price of its moves is least. What is together stays
    together; nodes that hold pinned items keep their names, as do seats that do."""
    fixed = {board.node_of(item) for item in board.items.pinned if board.at[item] >= 0}
    free = [node for node in range(len(board.cpu)) if node not in fixed]
    groups = [node for node in free if any(board.on[seat] for seat in board.seats.of_node[node])]
    plan = {node: node for node in fixed}
    if groups:
        cost = [[_relabelled(board, group, node)[0] for node in free] for group in groups]
        chosen = assign(cost)
        if all(row[column] != inf for row, column in zip(cost, chosen, strict=True)):
            plan |= {group: free[column] for group, column in zip(groups, chosen, strict=True)}
        else:
            plan |= {group: group for group in groups}
    seats = [(items, seat) for group, node in plan.items() for items, seat in _relabelled(board, group, node)[1]]
    for items, seat in seats:
        for item in items:
            if board.at[item] != seat:
                board.move(item, seat)


_Seated = list[tuple[tuple[int, ...], int]]


def _relabelled(board: Board, group: int, node: int) -> tuple[float, _Seated]:
    """The price of what has to move when the items of one node are on another, and who sits where then."""
    parts = [tuple(board.on[seat]) for seat in board.seats.of_node[group] if board.on[seat]]
    seats = board.seats.of_node[node]
    if group != node and (len(parts) > len(seats) or not _has_room(board, group, node)):
        return inf, []
    if not parts:
        return 0.0, []
    cost = [[_price(board, part, seat) for seat in seats] for part in parts]
    chosen = assign(cost)
    total = sum(row[column] for row, column in zip(cost, chosen, strict=True))
    return total, [(part, seats[column]) for part, column in zip(parts, chosen, strict=True)]


def _price(board: Board, part: tuple[int, ...], seat: int) -> float:
    pinned = board.items.pinned
    if len(board.on[seat]) and not pinned.isdisjoint(board.on[seat]) and tuple(board.on[seat]) != part:
        return inf
    return sum(inf if item in pinned and board.at[item] != seat else board.away(item, seat) for item in part)


def _has_room(board: Board, group: int, node: int) -> bool:
    seats = board.seats
    return (
        board.cpu[group] <= slack(seats.cpu[node])
        and board.memory[group] <= slack(seats.memory[node])
        and board.network[group] <= slack(seats.network[node])
    )
