"""The greedy rule of S4 and S5: pairs in descending order of exchanged rate (Aniello, Baldoni and Querzoni, DEBS 2013,
algorithm 1). It serves executors on workers and workers on nodes alike.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from penstock.placement.board import Board


class _LeastLoaded:
    """The least loaded seat where an item fits, without looking at all of them each time."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._heap = [self._rank(seat) for seat in range(len(board.on))]
        heapify(self._heap)

    def _rank(self, seat: int) -> tuple[float, int, int]:
        return (self._board.seat_cpu[seat], len(self._board.on[seat]), seat)

    def touched(self, seat: int) -> None:
        """The load of a seat is another one now."""
        heappush(self._heap, self._rank(seat))

    def seat(self, item: int) -> int:
        """-1 when the item fits nowhere."""
        passed, found = [], -1
        while self._heap:
            entry = self._heap[0]
            if entry != self._rank(entry[2]):
                heappop(self._heap)
                continue
            if entry[1] >= self._board.seats.most[entry[2]]:
                heappop(self._heap)  # full for everybody, until it is touched
                continue
            if self._board.fits(item, entry[2]):
                found = entry[2]
                break
            passed.append(heappop(self._heap))
        for entry in passed:
            heappush(self._heap, entry)
        return found


def pack(board: Board) -> None:
    """Place every item of the board that has traffic by the greedy rule, then the others. Items that fit nowhere go to
    the least loaded seat all the same: the limits that they break are repaired, or named, by others."""
    least = _LeastLoaded(board)
    flows = board.items.flows
    pairs = [(-flow, i, j) for i, own in enumerate(flows) for j, flow in own.items() if i < j]
    for _, i, j in sorted(pairs):
        if board.at[i] < 0 and board.at[j] < 0:
            _put_both(board, least, i, j)
        else:
            _best_of_all(board, least, i, j)
    place_rest(board, least)


def _put(board: Board, least: _LeastLoaded, item: int, seat: int) -> None:
    board.put(item, seat)
    least.touched(seat)


def _put_both(board: Board, least: _LeastLoaded, i: int, j: int) -> None:
    seat = least.seat(i)
    if seat < 0:
        return
    _put(board, least, i, seat)
    if not board.fits(j, seat):
        seat = least.seat(j)
    if seat >= 0:
        _put(board, least, j, seat)


def _best_of_all(board: Board, least: _LeastLoaded, i: int, j: int) -> None:
    """Every assignment of the two among the seats that hold either of them and the least loaded one."""
    here = (board.at[i], board.at[j])
    pinned = board.items.pinned
    seats = sorted({seat for seat in (*here, least.seat(i), least.seat(j)) if seat >= 0})
    first, second = ([at] if item in pinned and at >= 0 else seats for item, at in zip((i, j), here, strict=True))
    ranked = sorted(
        (gain, (wi, wj) != here, board.seat_cpu[wi] + board.seat_cpu[wj], wi, wj)
        for gain, wi, wj in _gains(board, i, j, first, second)
    )
    lifted = False
    for _, _, _, wi, wj in ranked:
        if not lifted:
            if (wi, wj) == here:
                return
            if not (_may_fit(board, i, wi, j, wj) and _may_fit(board, j, wj, i, wi)):
                continue
            _lift(board, least, i, j)
            lifted = True
        if board.fits(i, wi):
            board.put(i, wi)
            if board.fits(j, wj):
                board.put(j, wj)
                least.touched(wi)
                least.touched(wj)
                return
            board.take(i)
    for item, seat in zip((i, j), here, strict=True) if lifted else ():
        if seat >= 0:
            _put(board, least, item, seat)


def _lift(board: Board, least: _LeastLoaded, *items: int) -> None:
    """Take off what is placed of these."""
    for item in items:
        if board.at[item] >= 0:
            least.touched(board.take(item))


def _may_fit(board: Board, item: int, seat: int, other: int, other_seat: int) -> bool:
    """Whether it is worth trying: for sure not, when the seat is full and the other item does not leave it."""
    return board.at[item] == seat or (board.at[other] == seat != other_seat) or board.fits(item, seat)


def _gains(board: Board, i: int, j: int, first: list[int], second: list[int]) -> list[tuple[int, int, int]]:
    """Minus the traffic that stays inside when the two are there, for every choice; the rest is the same for all."""
    node, flow, unit = board.seats.node, board.items.flows[i][j], max(board.least_flow, 1e-300)
    ni, nj = board.node_of(i), board.node_of(j)
    own_i, own_j = board.affinity[i], board.affinity[j]
    inside_i = [(seat, own_i.get(node[seat], 0.0) - (flow if node[seat] == nj else 0.0)) for seat in first]
    inside_j = [(seat, own_j.get(node[seat], 0.0) - (flow if node[seat] == ni else 0.0)) for seat in second]
    return [
        (-round((a + b + (flow if node[wi] == node[wj] else 0.0)) / unit), wi, wj)
        for wi, a in inside_i
        for wj, b in inside_j
    ]


def place_rest(board: Board, least: _LeastLoaded | None = None) -> None:
    """Place what has no seat yet: beside its traffic where it fits, else on the least loaded seat."""
    least = _LeastLoaded(board) if least is None else least
    rest = [item for item, seat in enumerate(board.at) if seat < 0]
    for item in sorted(rest, key=lambda item: (-board.items.cpu[item], -board.items.memory[item], item)):
        seat = -1
        for node, _ in sorted(board.affinity[item].items(), key=lambda entry: (-entry[1], entry[0])):
            seat = board.seat_on(item, node)
            if seat >= 0:
                break
        if seat < 0:
            seat = least.seat(item)
        if seat < 0:
            seat = min(range(len(board.on)), key=lambda seat: (board.seat_cpu[seat], len(board.on[seat]), seat))
        _put(board, least, item, seat)
