"""Which module defines which public connector: the one place to add a line when a connector is added."""

from __future__ import annotations

SOURCES: dict[str, str] = {
    "csv": "csv_files",
    "files": "text_files",
    "iterable": "iterables",
    "mqtt": "mqtt_topics",
    "nats": "nats_jetstream",
    "ndjson": "ndjson_files",
    "push": "pushed",
    "redis_stream": "redis_streams",
    "sequence": "sequences",
    "sql": "sql_database",
}
"""Constructors that `Flow.source` accepts: public name -> module of `penstock.connectors`."""

SINKS: dict[str, str] = {
    "collect": "collected",
    "files": "text_files",
    "http": "http_posts",
    "mqtt": "mqtt_topics",
    "nats": "nats_jetstream",
    "ndjson": "ndjson_files",
    "null": "discarded",
    "redis_stream": "redis_streams",
    "sql": "sql_database",
    "stdout": "stdout_lines",
}
"""Constructors that `Flow.sink` accepts."""

CONNECTORS: dict[str, str] = SOURCES | SINKS
