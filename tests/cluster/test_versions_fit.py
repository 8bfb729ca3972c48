"""Whether executors of one version of a flow can go on as those of another."""

from __future__ import annotations

import msgspec
import pytest

from penstock.cluster.upgrading import difference
from penstock.flow.graph import EdgeShape, StageShape, Topology

PIPE = Topology(
    flow="f",
    bounded=False,
    stages=(
        StageShape(0, ("in", "a"), ("source", "map"), True, False),
        StageShape(1, ("b", "out"), ("count", "sink"), False, True),
    ),
    edges=(EdgeShape(0, 0, "a", 0, 1, "b", 0, "shuffle"),),
    sources=("in",),
)


def changed(place, **changes):
    stages = list(PIPE.stages)
    stages[place] = msgspec.structs.replace(stages[place], **changes)
    return msgspec.structs.replace(PIPE, stages=tuple(stages))


@pytest.mark.parametrize(
    "new",
    [
        changed(0, steps=("in", "z"), kinds=("source", "filter")),
        changed(0, steps=("in", "a", "c"), kinds=("source", "map", "map")),
        changed(1, steps=("b", "c", "out"), kinds=("fold", "map", "sink")),
        msgspec.structs.replace(PIPE, dead_letters=True),
    ],
)
def test_steps_of_a_stage_may_be_others(new):
    assert difference(PIPE, new) == ""


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (msgspec.structs.replace(PIPE, flow="g"), "named"),
        (msgspec.structs.replace(PIPE, sources=("other",)), "sources"),
        (msgspec.structs.replace(PIPE, stages=PIPE.stages[:1]), "2 stages"),
        (changed(1, keyed=False), "stage 1"),
        (changed(1, steps=("b", "out", "more"), kinds=("count", "sink", "sink")), "sinks of stage 1 were out, the"),
        (changed(1, steps=("b", "show"), kinds=("count", "sink")), "sinks"),
        (
            msgspec.structs.replace(
                PIPE, edges=(msgspec.structs.replace(PIPE.edges[0], kind="pipe"),)
            ),
            "other ways",
        ),
    ],
)  # fmt: skip
def test_flows_of_another_shape_are_refused_with_the_reason(new, why):
    assert why in difference(PIPE, new)


def test_a_sink_for_failed_records_does_not_go_away():
    assert "on_error" in difference(msgspec.structs.replace(PIPE, dead_letters=True), PIPE)
