from __future__ import annotations

import asyncio

import pytest
from tests.cluster.conftest import prefix, valkey
from tests.cluster.models import package
from tests.faults.operations.changes import NEW, OLD, Packages

__all__ = ["packages", "prefix", "valkey"]


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """Two versions of one model, packed."""
    found = []
    for name, source in (("old", OLD), ("new", NEW)):
        path = tmp_path_factory.mktemp(name) / "chain.py"
        path.write_text(source)
        found.append(asyncio.run(package(path)))
    return Packages(*found)
