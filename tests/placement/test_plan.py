"""How a topology unfolds into executors and channels."""

from __future__ import annotations

import pytest

from penstock.errors import FlowError, UsageError
from penstock.flow.graph import EdgeShape, StageShape, Topology
from penstock.placement.plan import (
    ExecutorKey,
    Placement,
    Problem,
    WorkerSlot,
    channels,
    executor_keys,
    stage_counts,
)


def edge(number: int, source: int, target: int, kind: str = "shuffle", port: int = 0) -> EdgeShape:
    return EdgeShape(number, source, f"step{source}", 0, target, f"step{target}", port, kind)


def topology(*edges: EdgeShape, default: int = 1) -> Topology:
    size = 1 + max(e.target_stage for e in edges)
    return Topology(
        flow="f",
        bounded=True,
        stages=tuple(
            StageShape(
                i,
                (f"step{i}", f"also{i}"),
                ("map", "map"),
                has_source=all(e.target_stage != i for e in edges),
                keyed=any(e.target_stage == i and e.kind == "shuffle" for e in edges),
            )
            for i in range(size)
        ),
        edges=edges,
        default_executors=default,
    )


def pairs(found, number):
    return [(c.producer_index, c.consumer_index) for c in found if c.edge.id == number]


def test_a_shuffle_joins_all_to_all():
    found = channels(topology(edge(0, 0, 1)), {0: 2, 1: 3})
    assert pairs(found, 0) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_a_pipe_is_straight_when_counts_are_equal():
    assert pairs(channels(topology(edge(0, 0, 1, "pipe")), {0: 3, 1: 3}), 0) == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("counts", [{0: 1, 1: 2}, {0: 2, 1: 1}])
def test_a_pipe_between_unequal_stages_joins_all(counts):
    assert len(channels(topology(edge(0, 0, 1, "pipe")), counts)) == 2


def test_ids_are_dense_and_follow_edge_producer_consumer():
    diamond = topology(edge(0, 0, 1), edge(1, 0, 2, "pipe"), edge(2, 1, 3), edge(3, 2, 3, port=1))
    found = channels(diamond, {0: 2, 1: 1, 2: 2, 3: 2})
    assert [c.id for c in found] == list(range(2 + 2 + 2 + 4))
    assert [(c.edge.id, c.producer_index, c.consumer_index) for c in found] == sorted(
        (c.edge.id, c.producer_index, c.consumer_index) for c in found
    )
    assert all((c.producer_stage, c.consumer_stage) == (c.edge.source_stage, c.edge.target_stage) for c in found)
    assert found == channels(diamond, {3: 2, 2: 2, 1: 1, 0: 2}), "the same in every process"


def test_a_self_join_has_its_own_channels_per_port():
    found = channels(topology(edge(0, 0, 1), edge(1, 0, 1, port=1)), {0: 1, 1: 1})
    assert [c.edge.target_port for c in found] == [0, 1]


def test_counts_from_one_number_a_mapping_or_the_default():
    t = topology(edge(0, 0, 1), edge(1, 1, 2), default=4)
    assert stage_counts(t, 2) == {0: 2, 1: 2, 2: 2}
    assert stage_counts(t) == {0: 4, 1: 4, 2: 4}
    assert stage_counts(t, {1: 3}) == {0: 4, 1: 3, 2: 4}
    assert stage_counts(t, {"also2": 5}) == {0: 4, 1: 4, 2: 5}


@pytest.mark.parametrize(
    ("executors", "text"),
    [
        (0, "stage 0 .*step0, also0.* at least 1 executor, not 0"),
        ({1: -2}, "stage 1 .* not -2"),
        ({9: 1}, "no stage 9"),
        ({1: 257}, r"stage 1 .* cannot have 257 executors.*\n.*at most 256"),
    ],
)
def test_impossible_counts_are_refused(executors, text):
    with pytest.raises(UsageError, match=text):
        stage_counts(topology(edge(0, 0, 1)), executors)


def test_an_unknown_step_is_refused():
    with pytest.raises(FlowError, match=r"no such step\n.*step0"):
        stage_counts(topology(edge(0, 0, 1)), {"nonsense": 1})


def test_only_keyed_stages_are_bound_by_key_groups():
    assert stage_counts(topology(edge(0, 0, 1)), {0: 300})[0] == 300


def test_executor_keys_are_in_order():
    assert executor_keys("g/m", {1: 1, 0: 2}) == (
        ExecutorKey("g/m", 0, 0),
        ExecutorKey("g/m", 0, 1),
        ExecutorKey("g/m", 1, 0),
    )
    assert str(ExecutorKey("g/m", 1, 0)) == "g/m:1.0"


def test_placements_tell_what_is_where_and_what_moves():
    a, b, c = executor_keys("m", {0: 3})
    one, two = WorkerSlot("n1", 0), WorkerSlot("n2", 0)
    before, after = Placement({a: one, b: two}), Placement({a: one, b: one, c: two})
    assert before.moves(after) == (b,)
    assert after.on(one) == (a, b)
    assert after.nodes() == ("n1", "n2")
    assert (str(one), str(two)) == ("n1#0", "n2#0")


def test_problems_are_checked():
    keys = executor_keys("m", {0: 1})
    slot = WorkerSlot("n", 0)
    with pytest.raises(UsageError, match="no worker for 1 executors"):
        Problem(keys, ())
    with pytest.raises(UsageError, match=r"executor m:0\.0 is named twice"):
        Problem(keys * 2, (slot,))
    with pytest.raises(UsageError, match="worker n#0 is named twice"):
        Problem(keys, (slot, slot))
    assert Problem((), ()).executors == ()
