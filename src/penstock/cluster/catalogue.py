"""The catalogue of models in its simple form: a model is a path that is present on every node.

Each change is one script that compares the generation, so of two changes based on the same state one is refused. This
is also where the transaction over the whole cluster comes in later: `Catalogue` keeps its methods, `path` becomes a
package's digest, and a change first has to be voted for by every node.
"""

from __future__ import annotations

import os
import re
from typing import Any

import msgspec

from penstock.cluster.bus import Bus
from penstock.cluster.plan import ModelEntry
from penstock.cluster.service import Conflict, NotFound, Unavailable
from penstock.errors import UsageError
from penstock.flow.graph import Topology
from penstock.model.loader import parse_target
from penstock.placement.plan import stage_counts

DEFAULT_GROUP = "default"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_ANSWER_LIMIT = 64 * 2**20


def full_name(name: str) -> str:
    """`group/name`, from that or from a bare name. Raises `UsageError` for anything else."""
    group, slash, bare = name.rpartition("/")
    group = group if slash else DEFAULT_GROUP
    if not _NAME.fullmatch(bare) or not _NAME.fullmatch(group):
        raise UsageError(
            f"{name!r} is not the name of a model",
            remedy="use NAME or GROUP/NAME of letters, digits, '.', '_' and '-', 100 of them at most",
        )
    return f"{group}/{bare}"


def present(path: str) -> str:
    """The absolute form of `path` (`file`, `directory` or `path:object`). Raises `UsageError` when there is none."""
    base, attribute = parse_target(path)
    if not os.path.exists(base):
        raise UsageError(
            f"there is no file or directory {base!r} on this node", remedy="give a path that every node has"
        )
    return os.path.abspath(base) + ("" if attribute is None else f":{attribute}")


class Catalogue:
    """Changes to the catalogue. `node` is who makes them, for the log."""

    def __init__(self, bus: Bus, node: str) -> None:
        self._bus, self._node = bus, node

    async def add(self, name: str, path: str, topology: Topology) -> None:
        """Enter a model, offline. Raises `Conflict` when the name is taken."""
        code = await self._bus.script(
            "model_add",
            self._keys("models", f"model:{name}", "numbers", "rev", "log"),
            [name, path, msgspec.json.encode(topology), self._node],
        )
        if code == -1:
            raise Conflict(f"there is a model {name!r} already", remedy="delete it first, or choose another name")
        if code == -2:
            raise Conflict("the catalogue is full: 65,535 models", remedy="delete some")
        await self._bus.ring()

    async def online(self, entry: ModelEntry, topology: Topology, config: dict[str, Any], executors: int | None) -> int:
        """Ask for it to run; the new generation. Raises `Conflict`, `UsageError` for an impossible number."""
        stage_counts(topology, executors)
        if entry.desired == "online" and not entry.error:
            raise Conflict(f"{entry.name!r} is online already", remedy="take it offline first")
        return await self._change(
            entry, "model.online", f"model {entry.name} is to go online",
            desired="online", config=msgspec.json.encode(config).decode(), error="",
            executors="" if executors is None else executors, topology=msgspec.json.encode(topology).decode(),
        )  # fmt: skip

    async def offline(self, entry: ModelEntry) -> int:
        """Ask for it to stop; the new generation. Raises `Conflict` when nothing is to run."""
        if entry.desired == "offline":
            raise Conflict(f"{entry.name!r} is offline already")
        text = f"model {entry.name} is to go offline"
        return await self._change(entry, "model.offline", text, desired="offline", error="")

    async def delete(self, entry: ModelEntry) -> None:
        """Strike it off. Raises `Conflict` while it is online or being stopped."""
        name = entry.name
        keys = self._keys("models", f"model:{name}", "numbers", "rev", "log", f"plan:{name}", f"run:{name}")
        code = await self._bus.script("model_delete", keys, [name, entry.generation, self._node])
        if code == -2:
            raise Conflict(f"{name!r} is not offline", remedy=f"penstock model offline {name}")
        self._check(name, code)
        await self._bus.ring()

    async def _change(self, entry: ModelEntry, kind: str, text: str, **fields: str | int) -> int:
        flat = [part for item in fields.items() for part in item]
        code = await self._bus.script(
            "model_change",
            self._keys(f"model:{entry.name}", "rev", "log"),
            [entry.name, entry.generation, kind, text, self._node, *flat],
        )
        self._check(entry.name, code)
        await self._bus.ring()
        return int(code)

    @staticmethod
    def _check(name: str, code: int) -> None:
        if code == -1:
            raise NotFound(f"there is no model {name!r}")
        if code == 0:
            raise Unavailable(f"{name!r} was just changed by somebody else", remedy="look at it and try again")

    def _keys(self, *names: str) -> list[str]:
        return [self._bus.key(name) for name in names]
