"""Channels of executors that come later: the same numbers everywhere, and none twice."""

from __future__ import annotations

import itertools

from penstock.exchange.split.routing import Shift
from penstock.flow.graph import EdgeShape, StageShape, Topology
from penstock.placement.plan import channels
from penstock.worker.messages import ExecutorId
from penstock.worker.replicated.wiring import LATER, Wiring, everybody

TOPOLOGY = Topology(
    flow="f",
    bounded=False,
    stages=tuple(StageShape(i, (f"s{i}",), ("fold" if i else "source",), not i, bool(i)) for i in range(3)),
    edges=tuple(EdgeShape(i, i, f"s{i}", 0, i + 1, f"s{i + 1}", 0, "shuffle") for i in range(2)),
)
COUNTS = {0: 1, 1: 2, 2: 2}


def numbers(wiring, members):
    """(from, to) -> number, as producers and as consumers see it."""
    out, into = {}, {}
    for name in members:
        stage, _, index = name.partition(".")
        ways_in, ways_out = wiring.of(ExecutorId(int(stage), int(index)), members)
        for channel in (*ways_in, *ways_out):
            ends = (f"{channel.producer_stage}.{channel.producer_index}",
                    f"{channel.consumer_stage}.{channel.consumer_index}")  # fmt: skip
            (into if channel in ways_in else out)[ends] = channel.id
    assert out == into
    return out


def test_without_newcomers_all_is_as_it_was():
    wiring = Wiring(TOPOLOGY, COUNTS)
    found = numbers(wiring, everybody(COUNTS, {}))
    assert sorted(found.values()) == [channel.id for channel in channels(TOPOLOGY, COUNTS)]


def test_newcomers_have_channels_with_all_neighbours():
    wiring = Wiring(TOPOLOGY, COUNTS)
    before = numbers(wiring, everybody(COUNTS, {}))
    after = numbers(wiring, {**everybody(COUNTS, {}), "1.2": 5, "2.2": 9})
    assert after | before == after
    new = {ends: number for ends, number in after.items() if ends not in before}
    assert new.keys() == {("0.0", "1.2"), *itertools.product(["1.2"], ["2.0", "2.1", "2.2"]),
                          *itertools.product(["1.0", "1.1"], ["2.2"])}  # fmt: skip
    assert all(LATER <= number < 2**63 for number in new.values())


def test_a_number_says_where_the_channel_leads():
    wiring = Wiring(TOPOLOGY, COUNTS)
    members = {**everybody(COUNTS, {}), "1.2": 5, "2.2": 9}
    for (producer, consumer), number in numbers(wiring, members).items():
        channel = wiring.channel(number)
        assert f"{channel.producer_stage}.{channel.producer_index}" == producer
        assert f"{channel.consumer_stage}.{channel.consumer_index}" == consumer


def test_who_is_born_again_has_other_channels():
    wiring = Wiring(TOPOLOGY, COUNTS)
    seen = set(numbers(wiring, everybody(COUNTS, {})).values())
    for births in ((5, 9), (6, 9), (6, 10), (9, 5)):
        members = {**everybody(COUNTS, {}), "1.2": births[0], "2.2": births[1]}
        joined = numbers(wiring, members)["1.2", "2.2"]
        assert joined not in seen
        seen.add(joined)
    without = {name: birth for name, birth in everybody(COUNTS, {}).items() if name != "1.0"}
    again = numbers(wiring, {**without, "1.0": 11})
    assert not seen & {number for ends, number in again.items() if "1.0" in ends}


def test_state_has_a_channel_per_shift():
    wiring = Wiring(TOPOLOGY, COUNTS)
    shifts = [Shift((1, 3), 0, 2, (1,), ()), Shift((1, 40_000), 0, 2, (1,), ()), Shift((1, 3), 1, 2, (1,), ())]
    found = [wiring.pieces(stage, shift) for stage in (1, 2) for shift in shifts]
    assert len({channel.id for channel in found}) == len(found)
    assert [(c.producer_stage, c.producer_index, c.consumer_index) for c in found[:3]] == [
        (1, 0, 2),
        (1, 0, 2),
        (1, 1, 2),
    ]
