"""From what workers count to what people read: rates, shares, losses, per executor and per channel.

Workers send totals since their start; rates are differences over the last `WINDOW` seconds. Each node publishes its
part in one key that expires by itself, so every node can show the whole cluster.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from penstock.clock import Clock
from penstock.cluster.bus import Bus
from penstock.cluster.plan import ModelState
from penstock.cluster.service import ChannelView, ExecutorView
from penstock.worker.messages import ChannelMetrics, ExecutorMetrics, Metrics

KEY_BYTES = 256
"""What a key with its state takes, about: sizes of state are estimated by counting keys."""
WINDOW = 3.0
EXPIRY = 5.0
"""Seconds after which a node's published metrics are forgotten."""


class NodeMetrics(msgspec.Struct, kw_only=True):
    """One node's part."""

    node: str
    executors: dict[str, list[ExecutorView]] = {}
    """model -> its executors here; with replicas, their primaries."""
    standbys: dict[str, list[ExecutorView]] = {}
    channels: dict[str, list[ChannelView]] = {}
    lost: dict[str, int] = {}
    """model -> records lost that this node's producers know of, also those of workers that are gone."""
    cpu: float = 0.0
    rss: int = 0
    workers: int = 0
    refused: int = 0
    """Stale commands that were refused."""


@dataclass
class Rates:
    """Differences of totals over the last seconds; pure."""

    _samples: deque[tuple[float, tuple[float, ...]]] = field(default_factory=deque)

    def add(self, now: float, totals: tuple[float, ...]) -> None:
        """New totals. Totals that went back belong to a new incarnation: the past is forgotten."""
        if self._samples and any(new < old for new, old in zip(totals, self._samples[-1][1], strict=True)):
            self._samples.clear()
        self._samples.append((now, totals))
        while len(self._samples) > 2 and self._samples[1][0] <= now - WINDOW:
            self._samples.popleft()

    def per_second(self, now: float) -> tuple[float, ...]:
        """One rate per total; zeros until there are two samples, or when the last one is old."""
        width = len(self._samples[-1][1]) if self._samples else 0
        if len(self._samples) < 2 or self._samples[-1][0] < now - 2 * WINDOW:
            return (0.0,) * width
        (start, first), (end, last) = self._samples[0], self._samples[-1]
        span = max(end - start, 1e-6)
        return tuple((b - a) / span for a, b in zip(first, last, strict=True))


@dataclass
class _Part:
    """What one worker said of one model."""

    executors: dict[str, ExecutorMetrics] = field(default_factory=dict)
    channels: dict[tuple[int, str, str], ChannelMetrics] = field(default_factory=dict)
    rates: dict[str, Rates] = field(default_factory=dict)
    channel_rates: dict[tuple[int, str, str], Rates] = field(default_factory=dict)
    latency: dict[str, tuple[float, list[float]]] = field(default_factory=dict)
    """executor -> when its latest quantiles came, and these."""

    def recent_latency(self, executor: str, now: float) -> list[float] | None:
        at, quantiles = self.latency.get(executor, (0.0, None))
        return quantiles if quantiles and at > now - WINDOW else None

    def lost(self) -> int:
        return sum(channel.lost for channel in self.channels.values())


class Metering:
    """The metrics of this node."""

    def __init__(self, node: str, clock: Clock) -> None:
        self._node, self._clock = node, clock
        self._parts: dict[tuple[int, str], _Part] = {}
        self._lost: dict[str, int] = {}
        self._rss: dict[int, int] = {}

    def feed(self, worker: int, message: Metrics) -> None:
        """A worker's report."""
        now = self._clock.monotonic()
        part = self._parts.setdefault((worker, message.model), _Part())
        self._rss[worker] = message.rss
        part.executors.clear()
        for executor in message.executors:
            name = str(executor.executor)
            part.executors[name] = executor
            totals = (executor.records_in, executor.records_out, executor.cpu)
            part.rates.setdefault(name, Rates()).add(now, totals)
            if executor.latency is not None:
                part.latency[name] = (now, executor.latency)
        for channel in message.channels:
            key = (channel.edge, str(channel.producer), str(channel.consumer))
            part.channels[key] = channel
            part.channel_rates.setdefault(key, Rates()).add(now, (channel.records, channel.bytes))

    def unloaded(self, worker: int, model: str) -> None:
        """The worker has the model no more; what it had lost stays counted."""
        part = self._parts.pop((worker, model), None)
        if part is not None and part.lost():
            self._lost[model] = self._lost.get(model, 0) + part.lost()

    def gone(self, worker: int) -> None:
        """The worker is no more."""
        for number, model in list(self._parts):
            if number == worker:
                self.unloaded(worker, model)
        self._rss.pop(worker, None)

    def forget(self, model: str) -> None:
        """The model's plan is over: its losses are history."""
        self._lost.pop(model, None)

    def lost(self, model: str) -> int:
        """Records of the model known here to be lost."""
        return self._lost.get(model, 0) + sum(p.lost() for (_, name), p in self._parts.items() if name == model)

    def keys(self, worker: int, model: str, executor: str) -> int:
        """The keys that an executor held when its worker last reported."""
        part = self._parts.get((worker, model))
        known = None if part is None else part.executors.get(executor)
        return 0 if known is None else known.keys

    def report(self, own_rss: int, workers: int) -> NodeMetrics:
        """Everything, as it is published."""
        now = self._clock.monotonic()
        result = NodeMetrics(node=self._node, workers=workers, rss=own_rss + sum(self._rss.values()))
        per_weight = self._bytes_per_weight()
        for (worker, model), part in self._parts.items():
            views = [
                _executor(e, part.rates[name].per_second(now), part.recent_latency(name, now), per_weight[worker])
                for name, e in part.executors.items()
            ]
            result.executors.setdefault(model, []).extend(v for v in views if v.role in _LEADING)
            if standbys := [view for view in views if view.role not in _LEADING]:
                result.standbys.setdefault(model, []).extend(standbys)
            result.cpu += sum(view.cpu for view in views)
            result.channels.setdefault(model, []).extend(
                _channel(key, c, part.channel_rates[key].per_second(now)) for key, c in part.channels.items()
            )
            result.lost[model] = self.lost(model)
        for model, count in self._lost.items():
            result.lost.setdefault(model, count)
        return result

    def _bytes_per_weight(self) -> dict[int, float]:
        """worker -> its bytes per weight of an executor: its memory is shared out among what it runs."""
        weights: dict[int, int] = {}
        for (worker, _), part in self._parts.items():
            weights[worker] = weights.get(worker, 0) + sum(_weight(e) for e in part.executors.values())
        return {worker: self._rss.get(worker, 0) / max(1, weight) for worker, weight in weights.items()}


class HeldKeys:
    """How many keys each planned executor of the cluster held when its node last told: what goes with a node."""

    def __init__(self) -> None:
        self._keys: dict[tuple[str, str, str], int] = {}

    def learn(self, parts: Iterable[NodeMetrics], models: Mapping[str, ModelState]) -> None:
        """The latest reports. Executors that the plans have elsewhere by now are forgotten."""
        for part in parts:
            for model, executors in part.executors.items():
                self._keys |= {(part.node, model, executor.id): executor.keys for executor in executors}
        planned = {
            (assigned.node, name, executor)
            for name, state in models.items()
            if state.plan is not None
            for executor, assigned in state.plan.executors.items()
        }
        self._keys = {where: count for where, count in self._keys.items() if where in planned}

    def of(self, node: str, model: str, executor: str) -> int:
        """The keys that the executor held there; 0 when nothing is known."""
        return self._keys.get((node, model, executor), 0)


_LEADING = ("", "primary")
"""Roles of those that do the work of an executor."""
_SAME_FOR_ALL = 4096
"""An executor counts for as much memory as so many keys, besides those that it has."""


def _weight(metrics: ExecutorMetrics) -> int:
    return _SAME_FOR_ALL + metrics.keys


def _executor(
    metrics: ExecutorMetrics, rates: tuple[float, ...], latency: list[float] | None, bytes_per_weight: float
) -> ExecutorView:
    return ExecutorView(
        id=str(metrics.executor),
        records_in=metrics.records_in,
        records_out=metrics.records_out,
        rate_in=rates[0],
        rate_out=rates[1],
        cpu=rates[2],
        memory=round(_weight(metrics) * bytes_per_weight),
        state_bytes=metrics.keys * KEY_BYTES,
        busy=metrics.busy,
        queue=metrics.queue,
        keys=metrics.keys,
        watermark=metrics.watermark,
        lag=metrics.lag,
        progress=metrics.progress,
        latency=latency,
        counters=metrics.counters,
        role=metrics.role,
        replica=metrics.replica,
        behind=metrics.behind,
        kept_bytes=metrics.kept_bytes,
        groups=metrics.groups,
        hot_key=metrics.hot_key,
        hot_share=metrics.hot_share,
        hot_group=metrics.hot_group,
    )


def _channel(key: tuple[int, str, str], metrics: ChannelMetrics, rates: tuple[float, ...]) -> ChannelView:
    edge, producer, consumer = key
    return ChannelView(
        edge=edge,
        producer=producer,
        consumer=consumer,
        records=metrics.records,
        bytes=metrics.bytes,
        rate=rates[0],
        byte_rate=rates[1],
        queue_bytes=metrics.queue_bytes,
        full=metrics.full,
        lost=metrics.lost,
    )


async def exchange_metrics(bus: Bus, own: NodeMetrics, members: Sequence[str]) -> dict[str, NodeMetrics]:
    """Publish a node's part, and read the parts of the members, but for those of a version whose parts
    cannot be read. Raises `BusDown`."""
    body = msgspec.json.encode(own)
    await bus.command("SET", bus.key("metrics", own.node), body, "PX", round(EXPIRY * 1000))
    found = {own.node: own}
    if members:
        texts = await bus.command("MGET", *(bus.key("metrics", name) for name in members))
        for name, text in zip(members, texts, strict=True):
            if text is not None and name != own.node:
                with contextlib.suppress(msgspec.MsgspecError):
                    found[name] = msgspec.json.decode(text, type=NodeMetrics)
    return found
