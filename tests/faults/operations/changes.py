"""The five operations on one model, as requests, and what an answer to them says."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from penstock.cluster.transaction.records import Entry, State

KINDS = ("add", "update", "online", "offline", "delete")
"""In an order in which each one is possible after the one before."""

OLD = """
# /// script
# requires-python = ">=3.11"
# [tool.penstock]
# name = "chain"
# version = "1"
#
# [tool.penstock.config]
# step = 31
# ///
import os
from pathlib import Path

import penstock as ps

if Path(os.environ.get("FAULTS_NODE", "/nowhere"), "refuse").exists():
    raise RuntimeError("this node does not want it")


def chained(state, record):
    number, sum_ = state[0] + 1, (state[1] * ps.config["step"] + record) % 1_000_003
    return (number, sum_), number


flow = ps.Flow("chain")
flow.source("numbers", ps.push()).key_by("one", lambda n: "all").fold("chain", (0, 0), chained).sink("out", ps.null())
"""
NEW = OLD.replace('version = "1"', 'version = "2"')


class Packages(NamedTuple):
    """The bytes of the two versions."""

    old: bytes
    new: bytes

    def digests(self) -> dict[str, str]:
        """Operation -> the digest that the model has after it, empty: none."""
        old, new = (hashlib.sha256(content).hexdigest() for content in self)
        return {"add": old, "update": new, "online": new, "offline": new, "delete": ""}


def request(kind: str, packages: Packages, name: str = "chain") -> dict[str, Any]:
    """What `httpx` is to send."""
    path = f"/v1/models/default/{name}"
    match kind:
        case "add":
            return {"method": "POST", "url": "/v1/models", "content": packages.old, "params": {"name": name}}
        case "update":
            return {"method": "PUT", "url": path, "content": packages.new, "params": {}}
        case "online":
            return {"method": "POST", "url": f"{path}/online", "json": {"executors": 3}, "params": {}}
        case "offline":
            return {"method": "POST", "url": f"{path}/offline", "params": {}}
        case "delete":
            return {"method": "DELETE", "url": path, "params": {}}
    raise AssertionError(kind)


class Told(NamedTuple):
    """What the caller knows now."""

    what: str
    """`done`, `rolled back`, `refused` (nothing was begun), `pending`, `nothing` (the connection broke)."""
    status: int = 0
    body: Any = None

    @property
    def operation(self) -> str:
        """The id, where the answer has it."""
        return str(self.body.get("operation", "")) if isinstance(self.body, dict) else ""

    @property
    def reasons(self) -> dict[str, str]:
        """Node -> what it objected to."""
        return dict(self.body.get("nodes", {})) if isinstance(self.body, dict) else {}

    @property
    def later(self) -> bool:
        """Whether the same may be asked again."""
        return self.what == "nothing" or (self.what == "refused" and self.status == 503)


NOTHING = Told("nothing")


def told(status: int, body: Any) -> Told:
    """An answer over HTTP."""
    if status == 202:
        return Told("pending", status, body)
    if 200 <= status < 300:
        return Told("done", status, body)
    return Told("rolled back" if status == 503 and body.get("operation") else "refused", status, body)


def happened(kind: str, before: Entry | None, after: Entry | None, packages: Packages) -> bool:
    """Whether the operation is in the catalogue; it is so entirely or not at all."""
    if before == after:
        return False
    assert after is not None
    assert before is None or after.generation > before.generation
    states = {"online": State.ONLINE, "delete": State.DELETED}
    assert after.state is states.get(kind, State.OFFLINE), (kind, after)
    assert after.digest == packages.digests()[kind], (kind, after)
    return True
