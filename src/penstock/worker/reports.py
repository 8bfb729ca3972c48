"""A model's metrics in one worker, sent at a steady interval."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from penstock.clock import Clock
from penstock.flow.batch import END_TIME, IDLE, MIN_TIME
from penstock.worker.executor import Executor
from penstock.worker.messages import ChannelMetrics, ExecutorId, ExecutorMetrics, Message, Metrics
from penstock.worker.model import Model


class Reporter:
    """Sends `Metrics` of one model every `metrics_interval` seconds."""

    def __init__(self, model: Model, say: Callable[[Message], None], process: psutil.Process, clock: Clock) -> None:
        self._model, self._say, self._process, self._clock = model, say, process, clock
        self._due = 0.0
        self._last = clock.monotonic()
        self._busy: dict[ExecutorId, int] = {}

    def tick(self, now: float) -> None:
        """Report if it is time."""
        if now >= self._due:
            self._due = now + self._model.load.settings.metrics_interval
            self.report(now)

    def report(self, now: float) -> None:
        """Report now."""
        elapsed = max(now - self._last, 1e-6)
        self._last = now
        executors = [self._executor(executor, elapsed) for executor in self._model.executors.values()]
        self._say(Metrics(self._model.name, executors, self._channels(), self._process.memory_info().rss))

    def _executor(self, executor: Executor, elapsed: float) -> ExecutorMetrics:
        before = self._busy.get(executor.id, 0)
        self._busy[executor.id] = executor.busy_ns
        counters = {
            f"{step}.{name}": count
            for step, counts in self._model.counters[executor.id].items()
            for name, count in counts.items()
        }
        stale = sum(inbound.receiver.stale for inbound in executor.inbounds.values())
        lost = sum(inbound.receiver.lost_frames for inbound in executor.inbounds.values())
        counters |= {name: count for name, count in (("stale_frames", stale), ("lost_frames", lost)) if count}
        marks = [i.watermark for i in executor.inbounds.values() if i.watermark not in (IDLE, END_TIME)]
        least = min(marks, default=MIN_TIME)
        lags = [lag for lane in executor.lanes if (lag := lane.reader.lag()) is not None]
        shares = [1.0 if lane.ended else lane.reader.progress() for lane in executor.lanes]
        known = [share for share in shares if share is not None]
        quantiles = executor.latency.quantiles(0.5, 0.95, 0.99)
        executor.latency.clear()
        return ExecutorMetrics(
            executor=executor.id,
            records_in=executor.records_in,
            records_out=sum(outbound.sender.records for outbound in executor.outbounds.values())
            + sum(sink.records for sink in executor.sinks.values()),
            cpu=executor.cpu_ns / 1e9,
            busy=min(1.0, (executor.busy_ns - before) / 1e9 / elapsed),
            queue=len(executor.queue) + sum(len(inbound.held) for inbound in executor.inbounds.values()),
            keys=sum(len(operator.state) for operator in executor.chain.keyed().values()),
            watermark=None if least == MIN_TIME else least,
            counters=counters,
            latency=quantiles,
            lag=sum(lags) if lags else None,
            progress=sum(known) / len(known) if known and len(known) == len(shares) else None,
        )

    def _channels(self) -> list[ChannelMetrics]:
        return [
            ChannelMetrics(
                edge=outbound.channel.edge.id,
                producer=ExecutorId(outbound.channel.producer_stage, outbound.channel.producer_index),
                consumer=ExecutorId(outbound.channel.consumer_stage, outbound.channel.consumer_index),
                records=outbound.sender.records,
                bytes=outbound.sender.bytes,
                frames=outbound.sender.frames,
                queue_bytes=outbound.sender.outstanding,
                lost=outbound.lost,
            )
            for outbound in self._model.outbounds.values()
        ]
