"""Replicas, and moves of primaries, as the gateway tells them; part of the seam in `penstock.cluster.service`."""

from __future__ import annotations

import msgspec


class ReplicaView(msgspec.Struct, kw_only=True):
    """One replica of an executor."""

    name: str
    role: str
    """`primary`, or what its standby does: `passive` (it keeps checkpoint and log), `active` (it computes) or `shadow`
    (it computes as another version, in a live update)."""
    node: str
    pid: int = 0
    """The worker process; 0: none at the moment."""
    state: str = "starting"
    """`starting`, `running`, `silent`, `finished`, `failed`."""
    protects: bool = False
    """Whether it could take over now without loss."""
    behind: int = 0
    """Log positions that it has not executed (active), or that are not in its last checkpoint (passive)."""
    kept_bytes: int = 0
    """Inputs and outputs that it keeps until they are safe elsewhere."""
    cpu: float = 0.0
    """CPU seconds per second."""
    pause: float = 0.0
    """A primary that has taken over: seconds for which the executor stood still."""


class UpdateView(msgspec.Struct, kw_only=True):
    """A live update that is under way, or the last one if it has failed."""

    version: str = ""
    """The new one's."""
    generation: int
    """The one that the catalogue gave it."""
    phase: str
    """`starting` (shadows are being loaded), `shadow` (they compute), `handing over`, `trial`, `settling` (until the
    first durable checkpoint of the new version is complete), or `failed`."""
    begun: float = 0.0
    executors: int = 0
    """How many run the new version."""
    error: str = ""
    """Why it failed."""


class SplitOrder(msgspec.Struct, kw_only=True):
    """What has become of the wish to split an executor: it has been written down."""

    model: str
    executor: str
    """The one that gives away."""
    groups: int
    """The key groups that go."""


class MoveOrder(msgspec.Struct, kw_only=True):
    """A planned move of an executor's primary."""

    model: str
    executor: str
    """`stage.index`."""
    source: str
    """The node that it is or was on."""
    target: str
    done: bool = False
    """It is on `target`."""
    reason: str = ""
    """Why it stays where it is, once that is known."""
