"""Running examples: in this process through `penstock.testing`, and as real processes through `penstock run`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.examples.references import EXAMPLES

from penstock.flow import config
from penstock.flow.batch import Keyed
from penstock.flow.graph import Graph
from penstock.model.loader import load_graph


@pytest.fixture
def load(monkeypatch):
    """`load("q1.py", input=…)`: an example as a checked graph, imported afresh with these settings."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)

    def fresh(name: str, **settings) -> Graph:
        sys.modules.pop(Path(name).stem, None)
        return load_graph(str(EXAMPLES / name), settings)

    yield fresh
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(EXAMPLES)):
            del sys.modules[name]
    config.install({})


@pytest.fixture
def penstock_run():
    """`penstock_run("q1.py", "--workers", "2")`: the records that real processes print."""

    def run(name: str, *options: str) -> list:
        # A file rather than a pipe would hide it if lines of two workers cut into each other.
        done = subprocess.run(
            [sys.executable, "-m", "penstock.cli", "run", str(EXAMPLES / name), *options],
            capture_output=True,
            text=True,
            timeout=100,
            env=os.environ | {"NO_COLOR": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def multiset(records: Iterable) -> Counter[str]:
    """Records as a multiset; a keyed one as sinks write it."""
    plain = ({"key": r.key, "value": r.value} if isinstance(r, Keyed) else r for r in records)
    return Counter(json.dumps(record, sort_keys=True) for record in plain)


@pytest.fixture
def same():
    """Compare two multisets of records; a difference is shown by a few records."""

    def compare(found: Iterable, expected: Iterable) -> None:
        got, wanted = multiset(found), multiset(expected)
        missing, extra = wanted - got, got - wanted
        told = f"missing {missing.total()}: {list(missing)[:3]}; too many {extra.total()}: {list(extra)[:3]}"
        assert not (missing + extra), told

    return compare
