from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.flows import Endless, Kept, flow_of

import penstock as ps
from penstock.testing import Crash, Harness


def running_sums(s):
    return s.key_by("k", lambda x: x % 3).fold("sum", 0, lambda total, x: (total + x, total + x))


numbers = st.lists(st.integers(0, 20), min_size=1, max_size=30)


@given(numbers, st.data(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5))
def test_a_crash_changes_nothing(records, data, executors, executors_after, batch):
    crash = data.draw(st.integers(0, len(records) - 1))
    saved = data.draw(st.integers(0, crash))
    expected = ps.testing.run(flow_of(running_sums), {"in": records})
    with Harness(flow_of(running_sums), executors=executors, batch_records=batch) as harness:
        harness.feed("in", records[:saved])
        harness.checkpoint()
        harness.crash_at("in", crash)
        with pytest.raises(Crash):
            harness.feed("in", records[saved:])
    with harness.restart(executors=executors_after) as again:
        again.finish()
        assert sorted(again.outputs["out"]) == sorted(expected.outputs["out"])
        assert again.states("sum") == expected.state["sum"]


def test_windows_survive_a_crash():
    def steps(s):
        return s.key_by("k", "k").window(ps.tumbling("1s"), on="ts").aggregate("w", n=ps.count(), v=ps.sum("v"))

    records = [{"k": i % 2, "ts": i * 130, "v": i} for i in range(40)]
    expected = ps.testing.run(flow_of(steps), {"in": records}).outputs["out"]
    with Harness(flow_of(steps)) as harness:
        harness.feed("in", records[:15])
        harness.checkpoint()
        harness.crash_at("in", 25)
        with pytest.raises(Crash):
            harness.feed("in", records[15:])
    with harness.restart() as again:
        again.finish()
        assert sorted(map(repr, again.outputs["out"])) == sorted(map(repr, expected))


def test_without_a_checkpoint_everything_is_read_again():
    harness = Harness(flow_of(running_sums))
    harness.crash_at("in", 1)
    with pytest.raises(Crash):
        harness.feed("in", [3, 6])
    with harness.restart() as again:
        assert again.state("sum", 0) == 9


def test_state_that_cannot_be_written_is_found():
    class Odd:
        pass

    with Harness(flow_of(lambda s: s.key_by("k", str).fold("f", Odd, lambda o, x: (o, x)))) as harness:
        harness.feed("in", [1])
        with pytest.raises(ps.CodecError, match="Odd"):
            harness.checkpoint()


def test_the_clock_moves_only_when_told():
    with Harness(flow_of(lambda s: s.map("m", str))) as harness:
        before = harness.clock.monotonic()
        harness.advance(2.5)
        assert harness.clock.monotonic() - before == 2.5


def test_a_source_reads_what_it_is_connected_to():
    flow = ps.Flow("seq")
    flow.source("in", ps.sequence(5)).map("m", lambda r: 1).sink("out", Kept())
    assert ps.testing.run(flow).outputs["out"] == [1] * 5


def test_a_rated_source_is_read_by_moving_the_clock():
    flow = ps.Flow("seq")
    flow.source("in", ps.sequence(rate=10)).map("m", lambda r: 1).sink("out", Kept())
    with Harness(flow) as harness:
        start = harness.clock.monotonic()
        assert harness.read("in", limit=20) == 20
        assert 1.0 < harness.clock.monotonic() - start < 3.0


def test_an_idle_partition_does_not_hold_event_time_back():
    def steps(s):
        return s.key_by("k", "k").window(ps.tumbling("1s"), on="ts").aggregate("w", n=ps.count())

    with Harness(flow_of(steps), partitions=2) as harness:
        harness.feed("in", [{"k": 0, "ts": 100}, {"k": 0, "ts": 3000}], partition=1)
        assert harness.outputs["out"] == []
        harness.idle("in", partition=0)
        harness.feed("in", [{"k": 0, "ts": 3100}], partition=1)
        assert [r["n"] for r in harness.outputs["out"]] == [1]


def test_wrong_names_are_told():
    with Harness(flow_of(running_sums)) as harness:
        with pytest.raises(ps.UsageError, match="the sources are: in"):
            harness.feed("nowhere", [])
        with pytest.raises(ps.UsageError, match="keyed steps are: sum"):
            harness.states("k")
        with pytest.raises(ps.UsageError, match="no partition 3"):
            harness.feed("in", [], partition=3)
        harness.finish()
        with pytest.raises(ps.UsageError, match="has ended"):
            harness.feed("in", [1])


def test_an_endless_source_can_be_fed():
    flow = ps.Flow("endless")
    flow.source("in", Endless()).key_by("k", lambda x: x).count("n").sink("out", Kept())
    with Harness(flow, executors=2) as harness:
        harness.feed("in", ["a", "a"])
        assert harness.state("n", "a") == 2
