"""Operations and versions, as the gateway tells them; part of the seam in `penstock.cluster.service`."""

from __future__ import annotations

from typing import Any

import msgspec


class VersionView(msgspec.Struct, kw_only=True):
    """One version of a model: the present one or an earlier one that `rollback` can bring back."""

    generation: int
    version: str
    digest: str
    config: dict[str, Any] = {}
    changed: float = 0.0
    """When it came, seconds since 1970 (Redis time)."""
    user: str = ""
    current: bool = False


class OperationView(msgspec.Struct, kw_only=True):
    """An operation on a model: on every node or on none."""

    id: str
    kind: str
    """`add`, `update`, `rollback`, `delete`, `online`, `offline`."""
    model: str
    phase: str
    """`preparing` (nodes prepare and vote), `committing` (decided), `finished` (in the catalogue), `aborted`."""
    settled: bool = False
    """Nothing is awaited any more: every node has it, or none."""
    reason: str = ""
    """Why it was rolled back."""
    nodes: dict[str, str] = {}
    """node -> `waiting`, `ready` (voted yes), `done`, or why it said no."""
    revision: int = 0
    """The catalogue revision that it made."""
    user: str = ""
    node: str = ""
    """The node that was asked."""
    started: float = 0.0
    """Seconds since 1970 (Redis time), as `deadline`."""
    deadline: float = 0.0
