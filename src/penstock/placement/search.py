"""Local search on a board: `repair` lowers what breaks limits, `improve` lowers the cost and breaks none.

Moves of one item, and swaps of two where the place is full. Every accepted step is strictly better, so both end; the
number of steps is bounded besides. No clock and no entropy: equal boards, equal results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from random import Random

from penstock.placement.board import Board

Trail = list[tuple[int, int]]
"""(item, seat where it was), to go back."""

_SWAP_NODES = 3
"""Full nodes, best first, where a swap is tried for one item."""


def improve(board: Board, items: Iterable[int] | None = None, trail: Trail | None = None) -> float:
    """Lower the cost until no move or swap does, beginning with `items` (all by default); by how much it changed.
    Only steps that break no limit are taken."""
    pinned = board.items.pinned
    waiting = deque(range(len(board.at)) if items is None else items)
    queued = set(waiting)
    changed, steps = 0.0, 50 * len(board.at) + 100
    while waiting and steps:
        item = waiting.popleft()
        queued.discard(item)
        if item in pinned:
            continue
        gain, touched = _step(board, item, trail)
        if gain:
            steps -= 1
            changed += gain
            for one in touched:
                for other in (one, *board.items.flows[one]):
                    if other not in queued:
                        queued.add(other)
                        waiting.append(other)
    return changed


def _step(board: Board, item: int, trail: Trail | None) -> tuple[float, tuple[int, ...]]:
    """The best move of an item, or a swap; the change of cost and who moved, or (0, ())."""
    nodes = board.seats.node
    home, here = board.items.home[item], board.at[item]
    targets = set(board.affinity[item])
    if home >= 0 and home != here:
        targets.add(nodes[home])
    least = -max(board.least_flow, 1e-9)
    options = []
    for node in targets:
        seat = home if home >= 0 and nodes[home] == node else -2
        if node != nodes[here] or seat == home != here:
            change = board.change(item, node, seat)
            if change < least:
                options.append((change, node))
    options.sort()
    for rank, (_, node) in enumerate(options):
        seat = board.seat_on(item, node)
        if seat >= 0:
            change = board.change(item, node, seat)
            if change < least:
                if trail is not None:
                    trail.append((item, here))
                board.move(item, seat)
                return change, (item,)
        if rank < _SWAP_NODES:
            change, other = _best_swap(board, item, node)
            if change < least:
                swap(board, item, other, trail)
                return change, (item, other)
    return 0.0, ()


def _best_swap(board: Board, item: int, node: int) -> tuple[float, int]:
    here, pinned, nodes = board.at[item], board.items.pinned, board.seats.node
    flows, back = board.items.flows[item], nodes[here]
    best, partner = 0.0, -1
    for seat in board.seats.of_node[node]:
        own = board.change(item, node, seat)
        for other in board.on[seat]:
            if other in pinned or other == item:
                continue
            change = own + board.change(other, back, here)
            if node != back and other in flows:
                change += 2 * flows[other]
            if (change < best or (change == best and other < partner)) and _swap_fits(board, item, other):
                best, partner = change, other
    return best, partner


def _swap_fits(board: Board, one: int, other: int) -> bool:
    """Whether the two can change places without breaking a limit."""
    items, seats = board.items, board.seats
    a, b = board.at[one], board.at[other]
    na, nb = seats.node[a], seats.node[b]
    more = items.cpu[one] - items.cpu[other]
    if not (_room(board.seat_cpu[b], more, seats.gamma[b]) and _room(board.seat_cpu[a], -more, seats.gamma[a])):
        return False
    if na == nb:
        return True
    fatter = items.memory[one] - items.memory[other]
    if not (
        _room(board.cpu[nb], more, seats.cpu[nb])
        and _room(board.cpu[na], -more, seats.cpu[na])
        and _room(board.memory[nb], fatter, seats.memory[nb])
        and _room(board.memory[na], -fatter, seats.memory[na])
    ):
        return False
    if any(board.node_of(x) == nb for x in items.apart[one] if x != other):
        return False
    if any(board.node_of(x) == na for x in items.apart[other] if x != one):
        return False
    return not board.metered or _swap_lowers_strain(board, one, other, allow_equal=True)


def _room(used: float, more: float, bound: float) -> bool:
    """Whether a bound holds after a change; what is over it already must not grow."""
    return more <= 0 or used + more <= bound * (1 + 1e-9) + 1e-9


def swap(board: Board, one: int, other: int, trail: Trail | None = None) -> None:
    """Two placed items change places."""
    a, b = board.at[one], board.at[other]
    if trail is not None:
        trail += [(one, a), (other, b)]
    board.take(one)
    board.take(other)
    board.put(one, b)
    board.put(other, a)


def _swap_lowers_strain(board: Board, one: int, other: int, *, allow_equal: bool = False) -> bool:
    before = _strain(board, board.at[one], board.at[other])
    swap(board, one, other)
    after = _strain(board, board.at[one], board.at[other])
    swap(board, one, other)
    return after < before - 1e-12 or (allow_equal and after <= before)


def _strain(board: Board, a: int, b: int) -> float:
    """What two seats and their nodes break together."""
    node = board.seats.node
    return sum(map(board.strain_of, {a, b})) + sum(map(board.strain_on, {node[a], node[b]}))


def repair(board: Board) -> None:
    """Move items off seats and nodes that break limits, cheapest first, as long as that helps."""
    for _ in range(2 * len(board.at) + 10):
        nodes = [n for n in range(len(board.cpu)) if _node_strain(board, n) > 0]
        if not any(_relieve(board, node) for node in nodes):
            return


def _node_strain(board: Board, node: int) -> float:
    return board.strain_on(node) + sum(map(board.strain_of, board.seats.of_node[node]))


def _relieve(board: Board, node: int) -> bool:
    """One move off the node, or between its seats, that lowers what is broken; a swap when no move does."""
    inside = [i for seat in board.seats.of_node[node] for i in sorted(board.on[seat]) if i not in board.items.pinned]
    options = [
        (board.change(item, board.seats.node[seat], seat), item, seat)
        for item in inside
        for seat in range(len(board.on))
        if seat != board.at[item] and board.fits(item, seat)
    ]
    for _, item, seat in sorted(options):
        here = board.at[item]
        before = _strain(board, here, seat)
        board.move(item, seat)
        if _strain(board, here, seat) < before - 1e-12:
            return True
        board.move(item, here)
    outside = [i for i, seat in enumerate(board.at) if seat >= 0 and board.seats.node[seat] != node]
    for one in inside:
        for other in outside:
            if other not in board.items.pinned and _swap_lowers_strain(board, one, other):
                swap(board, one, other)
                return True
    return False


def shake(board: Board, rounds: int, seed: int = 0) -> None:
    """Leave local optima: a few random moves, `improve` around them, and back when that was not better."""
    free = [item for item in range(len(board.at)) if item not in board.items.pinned]
    if len(free) < 2 or len(board.on) < 2:
        return
    random = Random(seed)
    for _ in range(rounds):
        trail: Trail = []
        changed = 0.0
        touched = []
        for _ in range(random.randint(2, 4)):
            item = random.choice(free)
            near = [other for other in board.items.flows[item] if board.at[other] != board.at[item]]
            seat = board.at[random.choice(near)] if near and random.random() < 0.7 else random.randrange(len(board.on))
            if seat != board.at[item]:
                changed += _force(board, item, seat, random, trail)
                touched.append(item)
        touched += [other for item in touched for other in board.items.flows[item]]
        changed += improve(board, dict.fromkeys(touched), trail)
        if changed > -max(board.least_flow, 1e-9):
            for item, seat in reversed(trail):
                board.move(item, seat)


def _force(board: Board, item: int, seat: int, random: Random, trail: Trail) -> float:
    """Put an item on a seat, in exchange for a random one when it is full; the change of cost, 0 when it cannot be."""
    node = board.seats.node[seat]
    if board.fits(item, seat):
        change = board.change(item, node, seat)
        trail.append((item, board.at[item]))
        board.move(item, seat)
        return change
    others = [other for other in sorted(board.on[seat]) if other not in board.items.pinned]
    if not others:
        return 0.0
    other = random.choice(others)
    if not _swap_fits(board, item, other):
        return 0.0
    back = board.seats.node[board.at[item]]
    change = board.change(item, node, seat) + board.change(other, back, board.at[item])
    if node != back:
        change += 2 * board.items.flows[item].get(other, 0.0)
    swap(board, item, other, trail)
    return change
