"""Durable checkpoints on the command line: where they are, what is told of them."""

import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import msgspec
import psutil
import pytest
from tests.cli.conftest import free_ports
from tests.cli.test_cli_cluster_commands import online  # noqa: F401 - a fixture

from penstock.cli.local_cluster import LocalCluster, store_url
from penstock.client import Client
from penstock.cluster.checkpoint_record import CheckpointRecord

FLOW = """
import penstock as ps
flow = ps.Flow("counts")
flow.source("n", ps.sequence(rate=200)).key_by("digit", lambda n: n % 10).count("count").sink("out", ps.collect())
"""


def until(condition, timeout=40):
    """Wait for a condition; what it is then."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return value


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (CheckpointRecord(generation=1), ["no checkpoint yet"]),
        (
            CheckpointRecord(generation=1, number=118, seconds=0.031, bytes=4_200_000),
            ["checkpoint 118", "4.2 MB in 31 ms"],
        ),
        (
            CheckpointRecord(generation=1, number=7, bytes=10, in_a_row=3, failed=4, error="No space left on device"),
            ["checkpoint 7", "the last 3 checkpoints failed: No space left on device"],
        ),
        (CheckpointRecord(generation=1, in_a_row=1, error="no answer"), ["a checkpoint failed: no answer"]),
    ],
)
def test_show_tells_the_last_checkpoint_and_what_failed_since(cluster, service, online, record, told):  # noqa: F811
    record = msgspec.structs.replace(record, at=time.time() - 4 if record.number else 0.0)
    service.catalogue["default/words"].checkpoint = record
    shown = cluster("model", "show", "words").stdout
    for words in told:
        assert words in shown
    if record.number:
        assert re.search(r"\b([4-9]|[1-5]\d) s ago", shown), "4 s, and what the command takes on a busy machine"
    assert json.loads(cluster("model", "show", "words", "--json").stdout)["checkpoint"]["number"] == record.number


def test_where_a_local_cluster_keeps_them():
    assert store_url("s3://bucket/a") == "s3://bucket/a"
    assert store_url("some/where") == os.path.abspath("some/where")
    assert LocalCluster(1, checkpoints="memory://x")._checkpoints() == "memory://x"
    assert LocalCluster(1, data=Path("data"))._checkpoints() == os.path.abspath("data/checkpoints")


@pytest.fixture
def home():
    """A directory for temporary files with a short name, for the sake of sockets."""
    path = Path(tempfile.mkdtemp(prefix="up-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_up_has_a_store_that_goes_away_with_a_killed_cluster(started, home, tmp_path):
    flow = tmp_path / "counts.py"
    flow.write_text(FLOW)
    command = started("up", "--nodes", 2, "--port", free_ports(2), "--json", env={"TMPDIR": str(home)})
    ready = json.loads(command.line())
    with Client(ready["nodes"][0]["url"]) as client:
        client.add_model(flow)
        assert client.online("counts", recovery="passive")["recovery"] == "passive"
        until(lambda: (client.model("counts")["checkpoint"] or {}).get("number"))
        assert list(home.glob("penstock-up-*/checkpoints/penstock/*/default/counts/*"))
    nodes = [psutil.Process(node["pid"]) for node in ready["nodes"]]
    processes = nodes + [worker for node in nodes for worker in node.children(recursive=True)]
    command.process.kill()
    until(lambda: not any(process.is_running() for process in processes))
    until(lambda: not list(home.glob("penstock-up-*")))
