from __future__ import annotations

import subprocess
import sys

import pytest

from penstock import connectors
from penstock.connectors.registry import CONNECTORS, SINKS, SOURCES
from penstock.errors import UsageError
from penstock.flow.connector import Sink, Source

EXAMPLES = {
    "collect": (),
    "csv": ("x",),
    "files": ("x",),
    "http": ("http://x",),
    "iterable": ([],),
    "mqtt": ("mqtt://x", "t"),
    "nats": ("nats://x", "s"),
    "ndjson": ("x",),
    "null": (),
    "push": (),
    "redis_stream": ("redis://x", "s"),
    "sequence": (),
    "sql": ("sqlite:///x", "t"),
    "stdout": (),
}


@pytest.mark.parametrize("name", sorted(CONNECTORS))
def test_every_connector_is_what_the_registry_says(name):
    made = getattr(connectors, name)(*EXAMPLES[name])
    assert isinstance(made, Source) == (name in SOURCES)
    assert isinstance(made, Sink) == (name in SINKS)
    assert made.describe()
    with pytest.raises(AttributeError, match=r"cannot assign"):
        made.bounded = None


def test_importing_connectors_is_light():
    program = (
        "import sys, penstock.connectors as c\n"
        "c.files, c.csv, c.ndjson, c.push, c.mqtt, c.sequence, c.sql, c.http, c.stdout, c.redis_stream\n"
        "c.sql('sqlite:///x', 't'); c.mqtt('mqtt://x', 't'); c.http('http://x')\n"
        "heavy = {'sqlalchemy', 'paho', 'httpx', 'redis', 'nats', 'polars', 'zmq', 'fastapi'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_unknown_names_and_arguments():
    with pytest.raises(AttributeError, match="no attribute 'telepathy'"):
        connectors.telepathy  # noqa: B018
    with pytest.raises(UsageError, match="one path"):
        connectors.ndjson(["a", "b"]).open(None)
