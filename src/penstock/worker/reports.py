"""A model's metrics in one worker, sent at a steady interval."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from penstock.clock import Clock
from penstock.flow.batch import END_TIME, IDLE, MIN_TIME
from penstock.worker.executor import Executor
from penstock.worker.messages import ChannelMetrics, ExecutorId, ExecutorMetrics, Message, Metrics
from penstock.worker.model import Model
from penstock.worker.replicated.executor import ReplicatedExecutor
from penstock.worker.replicated.seen_keys import plain

_HARMLESS = frozenset({"repeat", "older assignment"})
"""What replicas refuse because it is said again on purpose."""


_MUCH = 8
"""The load by keys is told when so much of a channel's credit waits: one part of so many."""


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
        executors = [self._executor(executor, elapsed) for executor in self._model.plain()]
        executors += [self._keys(replica, self._replica(replica, elapsed)) for replica in self._model.replicated()]
        self._say(Metrics(self._model.name, executors, self._channels(), self._process.memory_info().rss))

    def _executor(self, executor: Executor, elapsed: float) -> ExecutorMetrics:
        counters = self._counters(executor.id)
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
            busy=self._share(executor.id, executor.busy_ns, elapsed),
            queue=len(executor.queue) + sum(len(inbound.held) for inbound in executor.inbounds.values()),
            keys=sum(len(operator.state) for operator in executor.chain.keyed().values()),
            watermark=None if least == MIN_TIME else least,
            counters=counters,
            latency=quantiles,
            lag=sum(lags) if lags else None,
            progress=sum(known) / len(known) if known and len(known) == len(shares) else None,
        )

    def _counters(self, executor: ExecutorId) -> dict[str, int]:
        return {
            f"{step}.{name}": count
            for step, counts in self._model.counters[executor].items()
            for name, count in counts.items()
        }

    def _share(self, executor: ExecutorId, busy_ns: int, elapsed: float) -> float:
        """Of the interval that it was busy."""
        before = self._busy.get(executor, 0)
        self._busy[executor] = busy_ns
        return max(0.0, min(1.0, (busy_ns - before) / 1e9 / elapsed))

    def _keys(self, replica: ReplicatedExecutor, metrics: ExecutorMetrics) -> ExecutorMetrics:
        """With the load by keys, if much waits at a primary."""
        core, live = replica.machine.core, replica.live
        if (
            live is None
            or not replica.machine.is_primary
            or not self._model.graph.topology.stages[replica.id.stage].keyed
        ):
            return metrics
        report = live.keys.report(self._last)
        waiting = sum(line.bytes - line.processed_bytes for line in core.inputs.values())
        if waiting * _MUCH >= self._model.load.settings.credit_bytes:
            metrics.groups = {group: round(rate, 1) for group, rate in report.groups.items()}
            if report.hot is not None:
                metrics.hot_key, metrics.hot_group = plain(report.hot.key), report.hot_group
                metrics.hot_share = (report.hot.least, report.hot.most)
        return metrics

    def _replica(self, replica: ReplicatedExecutor, elapsed: float) -> ExecutorMetrics:
        core, live, ends = replica.machine.core, replica.live, replica.ends
        counters = self._counters(replica.id)
        counters |= {f"refused.{reason}": n for reason, n in core.refused.items() if reason not in _HARMLESS}
        marks = [] if live is None else [i.watermark for i in live.inbounds.values()]
        known = [mark for mark in marks if mark not in (IDLE, END_TIME)]
        least = min(known, default=MIN_TIME)
        readings = [] if ends is None else ends.readings
        lags = [lag for reading in readings if (lag := reading.reader.lag()) is not None]
        shares = [1.0 if reading.at.ended else reading.reader.progress() for reading in readings]
        told = [share for share in shares if share is not None]
        quantiles = replica.latency.quantiles(0.5, 0.95, 0.99)
        replica.latency.clear()
        sent = 0 if live is None else sum(gatherer.records for gatherer in live.gatherers.values())
        return ExecutorMetrics(
            executor=replica.id,
            records_in=0 if live is None else live.records_in,
            records_out=sent + (0 if ends is None else sum(line.records for line in ends.lines.values())),
            cpu=replica.cpu_ns / 1e9,
            busy=self._share(replica.id, replica.busy_ns, elapsed),
            queue=sum(line.next_seq - line.taken - 1 for line in core.inputs.values()),
            keys=0 if live is None else sum(len(operator.state) for operator in live.chain.keyed().values()),
            watermark=None if least == MIN_TIME else least,
            counters=counters,
            latency=quantiles,
            lag=sum(lags) if lags else None,
            progress=sum(told) / len(told) if told and len(told) == len(shares) else None,
            role=replica.role,
            replica=replica.name,
            behind=core.log.end - core.executed,
            kept_bytes=sum(i.bytes for i in core.inputs.values()) + sum(o.bytes for o in core.outputs.values()),
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
        ] + [row for replica in self._model.replicated() for row in _replica_channels(replica)]


def _replica_channels(replica: ReplicatedExecutor) -> list[ChannelMetrics]:
    live, outputs = replica.live, replica.machine.core.outputs
    if live is None or not replica.machine.is_primary:
        return []
    return [
        ChannelMetrics(
            edge=gatherer.channel.edge.id,
            producer=replica.id,
            consumer=ExecutorId(gatherer.channel.consumer_stage, gatherer.channel.consumer_index),
            records=gatherer.records,
            bytes=gatherer.bytes,
            frames=outputs[number].next_seq,
            queue_bytes=outputs[number].in_flight,
            full=round(min(1.0, outputs[number].in_flight / outputs[number].credit_bytes), 3),
        )
        for number, gatherer in live.gatherers.items()
    ]
