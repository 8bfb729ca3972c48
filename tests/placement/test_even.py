"""The even strategy and the registry."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.placement import registry
from penstock.placement.even import even, spread
from penstock.placement.plan import ExecutorKey, Placement, Problem, WorkerSlot, executor_keys


def slots(**nodes: int) -> tuple[WorkerSlot, ...]:
    return tuple(WorkerSlot(node, slot) for node, count in nodes.items() for slot in range(count))


def test_workers_take_turns_over_nodes():
    assert [str(w) for w in spread(slots(b=2, a=3, c=1))] == ["a#0", "b#0", "c#0", "a#1", "b#1", "a#2"]


def test_slot_numbers_need_not_be_dense():
    workers = (WorkerSlot("a", 7), WorkerSlot("a", 3), WorkerSlot("b", 9))
    assert [str(w) for w in spread(workers)] == ["a#3", "b#9", "a#7"]


def test_executors_take_turns_over_workers():
    keys = executor_keys("m", {0: 2, 1: 3})
    placement = even(Problem(keys, slots(n1=1, n2=1)))
    assert [placement.workers[key].node for key in keys] == ["n1", "n2", "n1", "n2", "n1"]


def test_running_executors_stay_and_new_ones_fill_up():
    old, new = executor_keys("old", {0: 3}), executor_keys("new", {0: 3})
    first, second = slots(n1=1, n2=1)
    current = Placement({old[0]: first, old[1]: first, old[2]: WorkerSlot("gone", 0)})
    placement = even(Problem(old + new, (first, second), current=current))
    assert current.moves(placement) == (old[2],)
    assert Counter(placement.workers.values()) == {first: 3, second: 3}


names = st.builds(ExecutorKey, st.sampled_from("ab"), st.integers(0, 3), st.integers(0, 5))
places = st.builds(WorkerSlot, st.sampled_from("xyz"), st.integers(0, 3))


@given(st.sets(names), st.sets(places, min_size=1), st.randoms())
def test_even_is_even_and_does_not_depend_on_order(executors, workers, random):
    problem = Problem(tuple(executors), tuple(workers))
    placement = registry.place("even", problem)
    counts = Counter(placement.workers.values())
    sizes = [counts[worker] for worker in workers]
    assert max(sizes) - min(sizes) <= 1
    shuffled = (list(executors), list(workers))
    for items in shuffled:
        random.shuffle(items)
    assert even(Problem(tuple(shuffled[0]), tuple(shuffled[1]))) == placement
    assert even(Problem(problem.executors, problem.workers, current=placement)) == placement


def test_an_unknown_strategy_names_the_known_ones():
    with pytest.raises(UsageError, match=r"no placement strategy 'odd'\n.*even"):
        registry.strategy("odd")
    assert registry.strategy(registry.DEFAULT) is even


def test_a_faulty_strategy_is_refused(monkeypatch):
    keys = executor_keys("m", {0: 2})
    problem = Problem(keys, slots(n=1))
    for answer, text in [
        ({keys[0]: WorkerSlot("n", 0)}, "m:0.1 has no worker"),
        (dict.fromkeys(keys, WorkerSlot("elsewhere", 0)), "m:0.0 is misplaced; m:0.1 is misplaced"),
    ]:
        monkeypatch.setitem(registry.STRATEGIES, "odd", lambda _, answer=answer: Placement(answer))
        with pytest.raises(UsageError, match=text):
            registry.place("odd", problem)
