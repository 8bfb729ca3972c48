"""Moves that were decided are handed out a few at a time, and dropped when the world has changed."""

from __future__ import annotations

import msgspec
from tests.cluster.scenes import member, model, view

from penstock.cluster.carrying import Carrier
from penstock.cluster.plan import Move as Wanted
from penstock.cluster.rebalancing import moving
from penstock.placement.explain import Move
from penstock.placement.plan import ExecutorKey, WorkerSlot

M = "default/m"
HOMES = {"0.0": "a", "0.1": "a", "0.2": "a", "0.3": "a"}


def key(executor):
    return ExecutorKey(M, 0, int(executor[-1]))


def move(executor, source="a", target="b"):
    return Move(key(executor), WorkerSlot(source, 0), WorkerSlot(target, 0), 0)


def seen(homes=None, under_way=(), **changes):
    state = model(M, {**HOMES, **(homes or {})}, stages=1, **changes.pop("model", {}))
    wanted = {e: Wanted(to="b", generation=1, asked=0.0, deadline=10.0) for e in under_way}
    return view(msgspec.structs.replace(state, moves=wanted), **changes)


def started(*executors, at_once=2):
    carrier = Carrier(at_once, moving)
    carrier.begin([move(executor) for executor in executors], seen())
    return carrier


def asked(carrier, now, view):
    return [f"{each.executor.stage}.{each.executor.index}" for each in carrier.next(now, view)]


def test_a_few_at_a_time_until_all_are_done():
    carrier = started("0.0", "0.1", "0.2")
    assert asked(carrier, 0.0, seen()) == ["0.0", "0.1"]
    assert asked(carrier, 1.0, seen(under_way=["0.0", "0.1"])) == []
    assert asked(carrier, 2.0, seen({"0.0": "b"}, under_way=["0.1"])) == ["0.2"]
    assert asked(carrier, 3.0, seen({"0.0": "b", "0.1": "b"}, under_way=["0.2"])) == []
    assert carrier.busy
    assert asked(carrier, 4.0, seen(dict.fromkeys(["0.0", "0.1", "0.2"], "b"))) == []
    assert not carrier.busy


def test_a_move_that_was_given_up_ends_the_rest():
    carrier = started("0.0", "0.1", at_once=1)
    assert asked(carrier, 0.0, seen()) == ["0.0"]
    asked(carrier, 1.0, seen(under_way=["0.0"]))
    assert asked(carrier, 2.0, seen()) == []  # it is still on a, and nobody wants it elsewhere any more
    assert not carrier.busy


def test_a_move_that_never_shows_up_ends_the_rest():
    carrier = started("0.0", "0.1", at_once=1)
    asked(carrier, 0.0, seen())
    assert carrier.busy
    assert asked(carrier, 9.0, seen()) == []
    assert carrier.busy
    asked(carrier, 11.0, seen())
    assert not carrier.busy


def test_what_has_changed_meanwhile_is_not_moved():
    assert asked(started("0.0", "0.1"), 0.0, seen({"0.0": "b"})) == []  # somebody has moved it already
    assert asked(started("0.0"), 0.0, seen(model={"generation": 2})) == []
    assert asked(started("0.0"), 0.0, seen(members=("a", member("b", live=False)))) == []
    assert asked(started("0.0"), 0.0, view()) == []


def test_a_model_that_cannot_be_moved_does_not_hold_up_another():
    other = model("default/other", {"0.0": "a"}, stages=1)
    both = view(model(M, HOMES, stages=1), other)
    carrier = Carrier(1, moving)
    one = Move(ExecutorKey("default/other", 0, 0), WorkerSlot("a", 0), WorkerSlot("b", 0), 0)
    carrier.begin([move("0.0"), move("0.1"), one], both)
    (first,) = carrier.next(0.0, both)
    carrier.failed(first)
    assert [each.executor.model for each in carrier.next(1.0, both)] == ["default/other"]
