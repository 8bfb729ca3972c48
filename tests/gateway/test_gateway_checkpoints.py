"""Durable checkpoints in views and metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from penstock.cluster.checkpoint_record import CheckpointRecord
from penstock.cluster.service import MetricsView, ModelView
from penstock.gateway.metrics import _Snapshot, families

WITH = CheckpointRecord(
    generation=4, number=12, at=1_700_000_000.5, seconds=0.25, pause=0.01, bytes=900, failed=3, in_a_row=2, error="full"
)


def model(name, checkpoint):
    return ModelView(name=name, desired="online", status="online", generation=4, checkpoint=checkpoint)


def test_metrics_of_checkpoints():
    registry = CollectorRegistry()
    view = MetricsView(nodes=[], models=[model("default/a", WITH), model("default/b", None)], channels={})
    registry.register(_Snapshot(families(view)))
    found = {f.name: f.samples for f in text_string_to_metric_families(generate_latest(registry).decode())}
    told = {
        name.removeprefix("penstock_model_"): [(s.labels["model"], s.value) for s in samples]
        for name, samples in found.items()
        if "checkpoint" in name
    }
    assert told == {
        "checkpoint": [("default/a", 12.0)],
        "checkpoint_timestamp_seconds": [("default/a", 1_700_000_000.5)],
        "checkpoint_seconds": [("default/a", 0.25)],
        "checkpoint_pause_seconds": [("default/a", 0.01)],
        "checkpoint_bytes": [("default/a", 900.0)],
        "checkpoint_failing": [("default/a", 2.0)],
        "checkpoints_failed": [("default/a", 3.0)],
    }
