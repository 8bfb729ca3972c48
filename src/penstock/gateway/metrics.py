"""`/metrics`: the cluster's latest metrics and this gateway's own, in the Prometheus text format."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.cluster.checkpoint_record import CheckpointRecord
from penstock.cluster.service import ChannelView, MetricsView, ModelView, NodeService, NodeView

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class _Snapshot(Collector):
    """Families that were made just before."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = list(families)

    def collect(self) -> Iterator[Metric]:
        yield from self.families


class RequestMetrics:
    """Counts requests and their duration per route (never per path: keys must not become labels)."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self.app = app
        labels = ("method", "route", "status")
        self.requests = Counter("penstock_http_requests", "Requests answered.", labels, registry=registry)
        self.duration = Histogram(
            "penstock_http_request_seconds", "Time to answer.", ("route",), registry=registry, buckets=BUCKETS
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500
        began = time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "")
            self.requests.labels(scope["method"], route, str(status)).inc()
            self.duration.labels(route).observe(time.perf_counter() - began)


def router(service: NodeService, registry: CollectorRegistry) -> APIRouter:
    """The route. `registry` holds the gateway's own metrics."""
    routes = APIRouter(tags=["health"])

    @routes.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        """Nodes, models, executors and channels as last reported, and this gateway's requests."""
        snapshot = CollectorRegistry()
        snapshot.register(_Snapshot(families(await service.metrics())))
        text = generate_latest(snapshot) + generate_latest(registry)
        return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})

    return routes


def families(view: MetricsView) -> Iterator[Metric]:
    """The cluster's metrics as Prometheus families."""
    yield from _node_families(view.nodes)
    yield from _model_families(view.models)
    yield from _executor_families(view.models)
    yield from _replica_families(view.models)
    yield from _channel_families(view.channels)


_NODE: tuple[tuple[str, str, Callable[[NodeView], float]], ...] = (
    ("up", "Whether the node's lease is in force.", lambda node: node.live),
    ("leader", "Whether the node leads the cluster.", lambda node: node.leader),
    ("executors", "Executors placed on the node.", lambda node: node.executors),
    ("workers", "Worker processes, warm ones included.", lambda node: node.workers),
    ("cpu_cores", "CPU seconds per second used by its executors.", lambda node: node.cpu),
    ("resident_bytes", "Resident memory of agent and workers.", lambda node: node.rss),
    ("network_bytes", "Bytes per second to and from other nodes.", lambda node: node.network),
    ("buffer_bytes", "Bytes that wait to be taken in by its executors.", lambda node: node.buffer),
    ("bottleneck", "Whether a resource has been over its bound for some time.", lambda node: bool(node.bottleneck)),
)

_MODEL: tuple[tuple[str, str, Callable[[ModelView], float]], ...] = (
    ("records_in", "Records read by its sources.", lambda model: model.records_in),
    ("records_out", "Records that came out of it.", lambda model: model.records_out),
    ("records_lost", "Records known to be lost.", lambda model: model.lost),
    ("keys_lost", "Keys whose state was lost by restarts, as last reported.", lambda model: model.keys_lost),
    ("restarts", "Executors restarted since it went online.", lambda model: model.restarts),
    ("promotions", "Times that a standby took over since it went online.", lambda model: model.promotions),
    ("restores", "Times that all was restored from a durable checkpoint.", lambda model: model.restores),
)


def _node_families(nodes: list[NodeView]) -> Iterator[Metric]:
    for name, text, read in _NODE:
        gauge = GaugeMetricFamily(f"penstock_node_{name}", text, labels=["node"])
        for node in nodes:
            gauge.add_metric([node.id], float(read(node)))
        yield gauge
    refused = CounterMetricFamily("penstock_node_refused", "Stale commands that were refused.", labels=["node"])
    for node in nodes:
        refused.add_metric([node.id], node.refused)
    yield refused


def _model_families(models: list[ModelView]) -> Iterator[Metric]:
    status = GaugeMetricFamily("penstock_model_status", "1 for the present status.", labels=["model", "status"])
    latency = GaugeMetricFamily("penstock_model_latency_seconds", "End to end.", labels=["model", "quantile"])
    events = CounterMetricFamily("penstock_model_events", "Late, skipped … records.", labels=["model", "event"])
    for model in models:
        status.add_metric([model.name, model.status], 1)
        for quantile, value in zip(("0.5", "0.95", "0.99"), model.latency or (), strict=False):
            latency.add_metric([model.name, quantile], value)
        for event, count in model.counters.items():
            events.add_metric([model.name, event], count)
    yield from (status, latency, events)
    yield from _checkpoint_families(models)
    for name, text, read in _MODEL:
        counter = CounterMetricFamily(f"penstock_model_{name}", text, labels=["model"])
        for model in models:
            counter.add_metric([model.name], read(model))
        yield counter


_CHECKPOINT: tuple[tuple[str, str, Callable[[CheckpointRecord], float]], ...] = (
    ("checkpoint", "Number of the last complete durable checkpoint.", lambda checkpoint: checkpoint.number),
    ("checkpoint_timestamp_seconds", "When it became complete.", lambda checkpoint: checkpoint.at),
    ("checkpoint_seconds", "How long it took.", lambda checkpoint: checkpoint.seconds),
    ("checkpoint_pause_seconds", "The longest wait of an executor for it.", lambda checkpoint: checkpoint.pause),
    ("checkpoint_bytes", "Its size.", lambda checkpoint: checkpoint.bytes),
    ("checkpoint_failing", "Checkpoints that failed since then.", lambda checkpoint: checkpoint.in_a_row),
)


def _checkpoint_families(models: list[ModelView]) -> Iterator[Metric]:
    failed = CounterMetricFamily("penstock_model_checkpoints_failed", "Checkpoints that failed.", labels=["model"])
    gauges = [
        (GaugeMetricFamily(f"penstock_model_{name}", text, labels=["model"]), read) for name, text, read in _CHECKPOINT
    ]
    for model in models:
        if model.checkpoint is not None:
            failed.add_metric([model.name], model.checkpoint.failed)
            for gauge, read in gauges:
                gauge.add_metric([model.name], read(model.checkpoint))
    yield failed
    yield from (gauge for gauge, _ in gauges)


def _replica_families(models: list[ModelView]) -> Iterator[Metric]:
    labels = ["model", "executor", "node", "role"]
    degraded = GaugeMetricFamily(
        "penstock_executor_degraded", "Whether no standby could take over.", labels=["model", "executor"]
    )
    protects = GaugeMetricFamily("penstock_replica_protects", "Whether this standby could take over.", labels=labels)
    behind = GaugeMetricFamily("penstock_replica_behind", "Log positions that a standby lacks.", labels=labels)
    kept = GaugeMetricFamily("penstock_replica_kept_bytes", "Kept until it is safe elsewhere.", labels=labels)
    for model in models:
        for executor in model.executors if model.recovery != "none" else ():
            degraded.add_metric([model.name, executor.id], executor.degraded)
            for replica in executor.replicas:
                where = [model.name, executor.id, replica.node, replica.role]
                kept.add_metric(where, replica.kept_bytes)
                if replica.role != "primary":
                    protects.add_metric(where, replica.protects)
                    behind.add_metric(where, replica.behind)
    yield from (degraded, protects, behind, kept)


def _executor_families(models: list[ModelView]) -> Iterator[Metric]:
    labels = ["model", "executor", "node"]
    counters = {
        "records_in": CounterMetricFamily("penstock_executor_records_in", "Records received.", labels=labels),
        "records_out": CounterMetricFamily("penstock_executor_records_out", "Records sent.", labels=labels),
    }
    gauges = {
        "busy": GaugeMetricFamily("penstock_executor_busy", "Share of time spent processing.", labels=labels),
        "cpu": GaugeMetricFamily("penstock_executor_cpu_cores", "CPU seconds per second.", labels=labels),
        "queue": GaugeMetricFamily("penstock_executor_queue", "Frames waiting.", labels=labels),
        "keys": GaugeMetricFamily("penstock_executor_keys", "Keys in state.", labels=labels),
        "lag": GaugeMetricFamily("penstock_executor_lag", "Input known to wait.", labels=labels),
    }
    for model in models:
        for executor in model.executors:
            where = [model.name, executor.id, executor.node]
            for field, family in (counters | gauges).items():
                value = getattr(executor, field)
                if value is not None:
                    family.add_metric(where, float(value))
    yield from counters.values()
    yield from gauges.values()


def _channel_families(channels: dict[str, list[ChannelView]]) -> Iterator[Metric]:
    labels = ["model", "edge", "producer", "consumer"]
    records = CounterMetricFamily("penstock_channel_records", "Records sent.", labels=labels)
    octets = CounterMetricFamily("penstock_channel_bytes", "Bytes sent.", labels=labels)
    waiting = GaugeMetricFamily("penstock_channel_queue_bytes", "Sent and not yet confirmed.", labels=labels)
    lost = CounterMetricFamily("penstock_channel_records_lost", "Known to be lost.", labels=labels)
    for model, cells in channels.items():
        for cell in cells:
            where = [model, str(cell.edge), cell.producer, cell.consumer]
            records.add_metric(where, cell.records)
            octets.add_metric(where, cell.bytes)
            waiting.add_metric(where, cell.queue_bytes)
            lost.add_metric(where, cell.lost)
    yield from (records, octets, waiting, lost)
