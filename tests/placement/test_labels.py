"""The assignment problem, and names that move least."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.placement.problems import capacities, keys, slots

from penstock.placement.board import Board, indexed
from penstock.placement.cost import moved
from penstock.placement.labels import assign, match
from penstock.placement.limits import Limits
from penstock.placement.plan import ExecutorLoad, Placement, Problem, WorkerSlot

entries = st.one_of(st.integers(0, 9).map(float), st.floats(0, 100, allow_nan=False))


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(entries, min_size=5, max_size=5), min_size=n, max_size=n)))
def test_no_other_assignment_is_cheaper(cost):
    chosen = assign(cost)
    assert len(set(chosen)) == len(cost)
    total = sum(row[column] for row, column in zip(cost, chosen, strict=True))
    least = min(sum(cost[i][c] for i, c in enumerate(p)) for p in permutations(range(5), len(cost)))
    assert total == pytest.approx(least)


def test_infinite_entries_are_avoided():
    inf = float("inf")
    assert assign([[1.0, inf, 5.0], [inf, inf, 1.0], [1.0, 900.0, inf]]) == [0, 2, 1]
    assert assign([]) == []
    with pytest.raises(ValueError, match=r"2 rows .* there are 1"):
        assign([[1.0], [2.0]])


def test_a_hundred_by_a_hundred():
    size = 100
    cost = [
        [float((i * 37 + j * 61) % 101 + (0 if j == (i + 3) % size else 200)) for j in range(size)] for i in range(size)
    ]
    assert assign(cost) == [(i + 3) % size for i in range(size)]


@given(
    st.lists(st.integers(0, 5), min_size=6, max_size=6), st.lists(st.integers(0, 5), min_size=6, max_size=6), st.data()
)
def test_matching_moves_least(planned, running, data):
    workers = slots(a=2, b=2, c=2)
    executors = keys(6)
    load = {key: ExecutorLoad(state=data.draw(st.integers(0, 10**6))) for key in executors}
    current = Placement({key: workers[i] for key, i in zip(executors, running, strict=True)})
    problem = Problem(executors, workers, load=load, current=current, limits=Limits(alpha=None))
    names, items, seats = indexed(problem)
    board = Board(items, seats)
    for i, seat in enumerate(planned):
        board.put(i, seat)
    match(board)
    after = names.placement(board)

    def renamed(nodes, flips):
        return Placement(
            {
                key: WorkerSlot("abc"[nodes[seat // 2]], (seat % 2) ^ flips[nodes[seat // 2]])
                for key, seat in zip(executors, planned, strict=True)
            }
        )

    flips = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    assert moved(problem, after) == min(moved(problem, renamed(p, f)) for p in permutations(range(3)) for f in flips)


def test_a_group_is_not_named_after_a_node_that_is_too_small():
    executors = keys(2)
    a, b = slots(a=1, b=1)
    problem = Problem(
        executors,
        (a, b),
        nodes={**capacities(2.0, "a"), **capacities(1.0, "b")},
        load=dict.fromkeys(executors, ExecutorLoad(cpu=0.9, state=10**6)),
        current=Placement({executors[0]: b, executors[1]: b}),
    )
    names, items, seats = indexed(problem)
    board = Board(items, seats)
    for i in range(2):
        board.put(i, 0)
    match(board)
    assert set(names.placement(board).workers.values()) == {a}
