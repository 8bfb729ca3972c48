"""Penstock: many small stream computations, kept running on a cluster. `import penstock as ps`.

Only what is needed to write a flow is imported at once; connectors, the client and the testing tools when they are
first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from penstock.connectors.registry import CONNECTORS
from penstock.errors import (
    CheckpointError,
    ClusterError,
    CodecError,
    ConnectorError,
    ExchangeError,
    FlowError,
    PenstockError,
    StepError,
    UsageError,
    WorkerError,
)
from penstock.flow.batch import Keyed
from penstock.flow.builder import Flow
from penstock.flow.config import config
from penstock.flow.connector import ConnectorContext, EndOfInput, Reader, Sink, Source, Writer
from penstock.flow.draws import now, random
from penstock.flow.graph import Graph, Step
from penstock.flow.mapreduce import MapReduce
from penstock.flow.stream import KeyedStream, Stream
from penstock.flow.windows import session, sliding, tumbling

if TYPE_CHECKING:
    from penstock import testing
    from penstock.client import AsyncClient, Client
    from penstock.connectors.collected import collect
    from penstock.connectors.csv_files import csv
    from penstock.connectors.discarded import null
    from penstock.connectors.http_posts import http
    from penstock.connectors.iterables import iterable
    from penstock.connectors.mqtt_topics import mqtt
    from penstock.connectors.nats_jetstream import nats
    from penstock.connectors.ndjson_files import ndjson
    from penstock.connectors.pushed import push
    from penstock.connectors.redis_streams import redis_stream
    from penstock.connectors.sequences import sequence
    from penstock.connectors.sql_database import sql
    from penstock.connectors.stdout_lines import stdout
    from penstock.connectors.text_files import files
    from penstock.flow.accumulators import Aggregate
    from penstock.flow.aggregates import (
        count,
        distinct_count,
        first,
        last,
        max,  # noqa: A004 - the aggregate, used as ps.max
        mean,
        min,  # noqa: A004
        quantile,
        sum,  # noqa: A004
    )

__version__ = "0.1.0"

__all__ = [
    "Aggregate",
    "AsyncClient",
    "CheckpointError",
    "Client",
    "ClusterError",
    "CodecError",
    "ConnectorContext",
    "ConnectorError",
    "EndOfInput",
    "ExchangeError",
    "Flow",
    "FlowError",
    "Graph",
    "Keyed",
    "KeyedStream",
    "MapReduce",
    "PenstockError",
    "Reader",
    "Sink",
    "Source",
    "Step",
    "StepError",
    "Stream",
    "UsageError",
    "WorkerError",
    "Writer",
    "collect",
    "config",
    "count",
    "csv",
    "distinct_count",
    "files",
    "first",
    "http",
    "iterable",
    "last",
    "max",
    "mean",
    "min",
    "mqtt",
    "nats",
    "ndjson",
    "now",
    "null",
    "push",
    "quantile",
    "random",
    "redis_stream",
    "sequence",
    "session",
    "sliding",
    "sql",
    "stdout",
    "sum",
    "testing",
    "tumbling",
]

_AGGREGATES = ("count", "distinct_count", "first", "last", "max", "mean", "min", "quantile", "sum")
_LAZY = {
    "Aggregate": "penstock.flow.accumulators",
    **dict.fromkeys(_AGGREGATES, "penstock.flow.aggregates"),
    **dict.fromkeys(("AsyncClient", "Client"), "penstock.client"),
    **dict.fromkeys(CONNECTORS, "penstock.connectors"),
}
"""Names that are imported when they are first used, and from where."""


def __getattr__(name: str) -> Any:
    if name == "testing":
        return import_module("penstock.testing")
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}{_near(name)}")
    found = getattr(import_module(module), name)
    globals()[name] = found
    return found


def _near(name: str) -> str:
    from difflib import get_close_matches

    near = [] if name.startswith("_") else get_close_matches(name, __all__, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
