from __future__ import annotations

import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def valkey():
    """The URL of a server of our own, for the whole session."""
    directory = Path(tempfile.mkdtemp(prefix="bus-"))
    guard = subprocess.Popen(
        [sys.executable, "-m", "penstock.cluster.embedded", str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert guard.stdout is not None
    assert guard.stdin is not None
    assert guard.stdout.readline() == b"ready\n"
    yield f"unix://{directory}/valkey.sock"
    guard.stdin.close()
    assert guard.wait(10) == 0
    guard.stdout.close()
    assert not directory.exists()


@pytest.fixture
def prefix():
    """Keys that nobody else uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


COUNT = """
import penstock as ps

flow = ps.Flow("counting")
(
    flow.source("lines", ps.push())
    .flat_map("split", str.split)
    .key_by("word", lambda word: word)
    .count("count")
    .sink("out", ps.collect())
)
"""


@pytest.fixture
def counting(tmp_path):
    """A model that counts pushed words."""
    path = tmp_path / "counting.py"
    path.write_text(COUNT)
    return str(path)
