from __future__ import annotations

import pytest
from tests.cluster.nodes import asynchronous

from penstock.clock import FakeClock
from penstock.cluster.bus import Bus
from penstock.cluster.metrics import HeldKeys, Metering, NodeMetrics, Rates, exchange_metrics
from penstock.cluster.plan import Assigned, ModelEntry, ModelState, Plan
from penstock.cluster.service import ExecutorView
from penstock.flow.graph import Topology
from penstock.settings import ClusterSettings
from penstock.worker.messages import ChannelMetrics, Epoch, ExecutorId, ExecutorMetrics, Metrics


def test_rates_are_differences_over_the_last_seconds():
    rates = Rates()
    assert rates.per_second(0.0) == ()
    rates.add(0.0, (0.0, 0.0))
    assert rates.per_second(0.0) == (0.0, 0.0)
    for second in range(1, 11):
        rates.add(float(second), (10.0 * second, 5.0 if second > 5 else 0.0))
    assert rates.per_second(10.0) == pytest.approx((10.0, 0.0))
    assert rates.per_second(30.0) == (0.0, 0.0)  # nothing was heard for long


def test_totals_that_go_back_belong_to_a_new_incarnation():
    rates = Rates()
    rates.add(0.0, (1000.0,))
    rates.add(1.0, (2000.0,))
    rates.add(2.0, (10.0,))
    rates.add(3.0, (20.0,))
    assert rates.per_second(3.0) == pytest.approx((10.0,))


def message(records, lost, latency=None):
    one, two = ExecutorId(0, 0), ExecutorId(1, 0)
    executor = ExecutorMetrics(
        executor=one, records_in=records, records_out=records, cpu=records / 100, busy=0.5, queue=1, keys=2,
        watermark=None, counters={"count.late": 3}, latency=latency,
    )  # fmt: skip
    channel = ChannelMetrics(
        edge=0, producer=one, consumer=two, records=records, bytes=10 * records, frames=1, queue_bytes=0, lost=lost
    )
    return Metrics("g/m", [executor], [channel], rss=1000)


def test_metering_gives_rates_and_keeps_what_was_lost_when_workers_go():
    clock = FakeClock()
    metering = Metering("a", clock)
    metering.feed(1, message(0, 0, latency=[0.1, 0.2, 0.3]))
    clock.advance(1.0)
    metering.feed(1, message(50, 7))
    report = metering.report(own_rss=1, workers=2)
    (view,) = report.executors["g/m"]
    assert (view.rate_in, view.cpu, view.latency) == (pytest.approx(50.0), pytest.approx(0.5), [0.1, 0.2, 0.3])
    (channel,) = report.channels["g/m"]
    assert (channel.rate, channel.byte_rate) == (pytest.approx(50.0), pytest.approx(500.0))
    assert (report.lost, report.rss, report.workers) == ({"g/m": 7}, 1001, 2)
    metering.gone(1)
    metering.feed(2, message(5, 1))
    assert metering.lost("g/m") == 8
    metering.gone(2)
    assert metering.report(0, 0).lost == {"g/m": 8}
    metering.forget("g/m")
    assert metering.lost("g/m") == 0


def test_the_keys_of_an_executor_are_known_until_its_worker_is_gone():
    metering = Metering("a", FakeClock())
    metering.feed(1, message(5, 0))
    assert (metering.keys(1, "g/m", "0.0"), metering.keys(1, "g/m", "1.0"), metering.keys(2, "g/m", "0.0")) == (2, 0, 0)
    metering.gone(1)
    assert metering.keys(1, "g/m", "0.0") == 0


def planned_on(node):
    entry = ModelEntry(
        name="g/m", digest="d1", desired="online", generation=1,
        topology=Topology(flow="m", bounded=False, stages=(), edges=()),
    )  # fmt: skip
    plan = Plan(
        model="g/m", number=1, generation=1, revision=1, digest="d1", config={}, counts={0: 1},
        executors={"0.0": Assigned(node=node, incarnation=1, epoch=Epoch(1, 1))},
    )  # fmt: skip
    return {"g/m": ModelState(entry=entry, plan=plan)}


def test_what_a_silent_node_held_is_remembered_until_the_plan_has_moved_on():
    held = HeldKeys()
    held.learn([NodeMetrics(node="a", executors={"g/m": [ExecutorView(id="0.0", keys=7)]})], planned_on("a"))
    held.learn([NodeMetrics(node="b")], planned_on("a"))
    assert held.of("a", "g/m", "0.0") == 7
    held.learn([NodeMetrics(node="b")], planned_on("b"))
    assert held.of("a", "g/m", "0.0") == 0


@asynchronous
async def test_a_part_that_cannot_be_read_does_not_hide_the_others(valkey, prefix):
    bus = Bus(valkey, ClusterSettings(prefix=prefix))
    await bus.start()
    try:
        await exchange_metrics(bus, NodeMetrics(node="b", rss=5), [])
        await bus.command("SET", bus.key("metrics", "c"), '{"node": "c", "rss": "of another version"}')
        found = await exchange_metrics(bus, NodeMetrics(node="a"), ["a", "b", "c", "d"])
        assert sorted(found) == ["a", "b"]
        assert found["b"].rss == 5
    finally:
        await bus.close()
