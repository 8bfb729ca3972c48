"""What an agent knows of the models in its workers, and what it may do about them: the words of `converge`.

A **place** is what a plan gives a node and an epoch: an executor, or with replicas one replica of it (`Plan.seats`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from penstock.worker.messages import Epoch

Pool: TypeAlias = tuple[str, str]
"""(group, environment): models of one pool share worker processes."""


class Phase(Enum):
    """How far a model is in one worker."""

    LOADING = "loading"
    LOADED = "loaded"
    STARTED = "started"
    STOPPING = "stopping"


@dataclass(frozen=True)
class Host:
    """Places of a model in one worker of this node: they came with one `Load` and, but for single replicas that are
    released, go together."""

    worker: int
    model: str
    epoch: Epoch
    executors: frozenset[str]
    """The places."""
    phase: Phase
    connected: int = 0
    """The latest plan revision whose endpoints were sent to the worker."""
    knows: int = 0
    """With replicas: the latest one of which all endpoints were sent."""
    releasing: frozenset[str] = frozenset()
    """Replicas that it has been told to release."""


@dataclass(frozen=True)
class LoadModel:
    """Load executors; `worker` None: in another worker than the present ones."""

    model: str
    epoch: Epoch
    executors: tuple[str, ...]
    """Places."""
    worker: int | None


@dataclass(frozen=True)
class StopModel:
    """Drop the model's executors in a worker."""

    worker: int
    model: str


@dataclass(frozen=True)
class ReleaseReplicas:
    """Drop single replicas in a worker."""

    worker: int
    model: str
    replicas: tuple[str, ...]


@dataclass(frozen=True)
class ConnectModel:
    """Tell a worker where the executors are. `complete`: all of them, new standbys too."""

    worker: int
    model: str
    revision: int
    complete: bool = True


@dataclass(frozen=True)
class StartModel:
    """Open the gates in a worker."""

    worker: int
    model: str


@dataclass(frozen=True)
class HandOver:
    """Tell a primary to hand over to a standby; it may be told again."""

    worker: int
    model: str
    executor: str
    standby: str


@dataclass(frozen=True)
class ReportConnected:
    """Every worker of this node knows the endpoints of this revision."""

    model: str
    revision: int


@dataclass(frozen=True)
class Forget:
    """Nothing of these executors is here any more."""

    model: str
    executors: tuple[str, ...]


Action: TypeAlias = (
    LoadModel | StopModel | ReleaseReplicas | ConnectModel | StartModel | HandOver | ReportConnected | Forget
)


@dataclass(frozen=True)
class Here:
    """This node, as `converge` needs to know it."""

    node: str
    incarnation: int
    hosts: Sequence[Host]
    pools: Mapping[int, Pool]
    """Running workers -> the pool that they belong to."""
    homes: Mapping[tuple[str, bool], Pool]
    """(model, whether of the version that is taking over) -> the pool whose workers may hold it."""
    attempted: Collection[tuple[str, str, Epoch]] = ()
    """(model, place, epoch) that were loaded here before."""
