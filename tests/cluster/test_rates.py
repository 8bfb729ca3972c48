from __future__ import annotations

import pytest

from penstock.clock import FakeClock
from penstock.cluster.metrics import Metering, Rates
from penstock.worker.messages import ChannelMetrics, ExecutorId, ExecutorMetrics, Metrics


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
