"""What the board keeps up to date is what one would count anew; the searches never leave it worse."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.placement.exact import random_problem
from tests.placement.problems import problems

from penstock.placement.board import Board, indexed
from penstock.placement.cost import objective
from penstock.placement.feasible import used_resources
from penstock.placement.limits import Limits
from penstock.placement.pack import place_rest
from penstock.placement.plan import ExecutorLoad
from penstock.placement.search import improve, repair, shake, swap


def agrees(problem, names, board: Board) -> None:
    placement = names.placement(board)
    total = sum(flow.bytes + 32 * flow.records for flow in problem.traffic.values())
    assert board.cost() == pytest.approx(objective(problem, placement), rel=1e-6, abs=1e-6 + 1e-9 * total)
    used = used_resources(problem, placement)
    for i, node in enumerate(names.nodes):
        cpu, memory, network = used.get(node, (0.0, 0.0, 0.0))
        assert board.cpu[i] == pytest.approx(cpu, abs=1e-6)
        assert board.memory[i] == pytest.approx(memory, abs=1e-6)
        if board.metered:
            assert board.network[i] == pytest.approx(network, rel=1e-6, abs=1e-6 + 1e-9 * total)


@settings(deadline=None)
@given(problems(), st.integers(0, 1000))
def test_it_counts_right_whatever_is_done(problem, seed):
    running = problem.current  # moves off workers that may not be used any more have no price on the board
    if running is not None and not set(running.workers.values()) <= set(indexed(problem)[0].workers):
        problem = replace(problem, limits=Limits(alpha=None))
    names, items, seats = indexed(problem)
    board = Board(items, seats)
    place_rest(board)
    agrees(problem, names, board)
    random = Random(seed)
    for _ in range(10 if problem.executors else 0):
        one, other = random.randrange(len(board.at)), random.randrange(len(board.at))
        if random.random() < 0.5:
            board.move(one, random.randrange(len(board.on)))
        elif one != other:
            swap(board, one, other)
    agrees(problem, names, board)


@settings(deadline=None)
@given(problems())
def test_searches_never_make_it_worse(problem):
    names, items, seats = indexed(problem)
    board = Board(items, seats)
    place_rest(board)
    strain = board.strain()
    repair(board)
    assert board.strain() <= strain + 1e-9
    strain, cost = board.strain(), board.cost()
    slack = 1e-6 + 1e-9 * abs(cost)
    changed = improve(board)
    assert changed <= 0
    assert board.cost() == pytest.approx(cost + changed, rel=1e-6, abs=1e-6)
    assert board.strain() <= strain + 1e-9
    cost = board.cost()
    shake(board, 10)
    assert board.cost() <= cost + slack
    assert board.strain() <= strain + 1e-9
    assert names.placement(board).workers.keys() == set(problem.executors)


def test_improving_reaches_a_plan_that_no_single_move_betters():
    for seed in range(20):
        problem = random_problem(seed)
        names, items, seats = indexed(problem)
        board = Board(items, seats)
        place_rest(board)
        repair(board)
        improve(board)
        for item in range(len(board.at)):
            for seat in range(len(board.on)):
                if seat != board.at[item] and board.fits(item, seat):
                    assert board.change(item, board.seats.node[seat], seat) >= -1e-6, (seed, names.executors[item])


def test_a_swap_repairs_what_no_move_can():
    problem = replace(random_problem(3), traffic={}, current=None, apart=(), limits=Limits(alpha=None))
    keys = problem.executors[:4]
    nodes = {node: replace(own, cpus=1.0, memory=0) for node, own in list(problem.nodes.items())[:2]}
    load = {key: ExecutorLoad(cpu=cpu) for key, cpu in zip(keys, (0.6, 0.6, 0.4, 0.4), strict=True)}
    workers = tuple(slot for slot in problem.workers if slot.node in nodes)
    names, items, seats = indexed(replace(problem, executors=keys, nodes=nodes, load=load, workers=workers))
    board = Board(items, seats)
    for item, seat in enumerate((0, 0, 1, 1)):
        board.put(item, seat)
    repair(board)
    assert board.strain() == 0
    assert board.cpu == pytest.approx([1.0, 1.0])
    assert len(names.nodes) == 2
