"""What is written down in Redis about a model: the catalogue's entry, the leader's plan, the agents' reports.

Only the leader writes plans, each with its term; only the agent of a node writes what runs on it, each time with its
incarnation. Both are JSON in Redis, readable by people.
"""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.flow.graph import Topology
from penstock.worker.messages import Epoch, ExecutorId

ALIVE = frozenset({"loaded", "running", "finished"})
"""States of an executor that can be reached."""
GONE = frozenset({"lost", "failed"})
"""States of an executor that must be started anew, with a higher epoch."""


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A model as the catalogue has it, with what this node knows of its package."""

    name: str
    desired: str
    """`online` or `offline`."""
    generation: int
    """The catalogue revision that made it what it is; every change names the generation that it is based on."""
    digest: str
    """sha256 of its package."""
    version: str = ""
    config: dict[str, Any] = {}
    executors: int | None = None
    recovery: str = "none"
    topology: Topology | None = None
    """`None`: this node does not have the package yet."""
    lock: str = ""
    """The operation that is changing it."""
    user: str = ""
    changed: float = 0.0
    error: str = ""
    """Set by the leader when the model cannot run; gone with the next online."""
    counter: int = 0
    """The highest plan revision that there has been."""

    @property
    def group(self) -> str:
        """Models of one group and environment share worker processes."""
        return self.name.partition("/")[0]


class Failure(msgspec.Struct, frozen=True):
    """The leader's word that a model cannot run."""

    generation: int
    error: str


class Assigned(msgspec.Struct, frozen=True, kw_only=True):
    """Where one executor is to run, and as which incarnation."""

    node: str
    incarnation: int
    epoch: Epoch
    restarts: int = 0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model's executors are to run."""

    model: str
    number: int
    """Unique among the models that have a plan: frames between workers carry it."""
    generation: int
    """Of the catalogue's entry that this plan serves."""
    revision: int
    """Grows with every plan of the model."""
    digest: str
    """Of the package; every node has it in its library."""
    config: dict[str, Any]
    counts: dict[int, int]
    executors: dict[str, Assigned]
    """`str(ExecutorId)` -> its assignment."""
    strategy: str = "even"
    failures: list[float] = []
    """When executors were restarted after a failure, seconds of Redis time, the latest few."""
    keys_lost: int = 0
    """Keys that executors held when they were lost, as far as they had reported; over all restarts of this plan."""

    def nodes(self) -> set[str]:
        """The nodes that have a part in it."""
        return {assigned.node for assigned in self.executors.values()}


class RunEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent says of one executor."""

    epoch: Epoch
    node: str
    incarnation: int
    state: str
    """`loaded`, `running`, `finished`, `lost` (the worker died) or `failed` (the model's code or connectors)."""
    endpoint: str = ""
    server_key: str = ""
    pid: int = 0
    error: str = ""
    kind: str = ""
    """The class name of the error."""
    loading: bool = False
    """It failed while it was loaded, before it did anything."""
    keys: int = 0
    """Keys that it held when it was last heard of; told once it is gone."""


class Lives(msgspec.Struct, frozen=True, kw_only=True):
    """A member whose lease is in force, as placement sees it."""

    incarnation: int
    slots: int = 1


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one model at one moment."""

    entry: ModelEntry
    plan: Plan | None = None
    run: dict[str, RunEntry] = {}
    connected: dict[str, int] = {}
    """node -> the plan revision whose endpoints all its workers know."""
    lost: dict[str, int] = {}
    """node -> records that its workers counted as lost."""


def executor_id(text: str) -> ExecutorId:
    """The inverse of `str(ExecutorId)`."""
    stage, _, index = text.partition(".")
    return ExecutorId(int(stage), int(index))


def reachable(plan: Plan, run: dict[str, RunEntry]) -> bool:
    """Whether every executor of the plan has been loaded in its planned incarnation and is not gone since."""
    return all(
        name in run and run[name].epoch == assigned.epoch and run[name].state in ALIVE
        for name, assigned in plan.executors.items()
    )


def status(state: ModelState) -> str:
    """What `ModelView.status` says."""
    entry, plan, run = state.entry, state.plan, state.run
    if entry.desired == "offline":
        return "stopping" if plan is not None or run else "offline"
    if entry.error:
        return "failed"
    if plan is None or plan.generation != entry.generation:
        return "starting"
    states = {
        run[name].state if name in run and run[name].epoch == assigned.epoch else "starting"
        for name, assigned in plan.executors.items()
    }
    if states == {"finished"}:
        return "finished"
    if states <= {"running", "finished"}:
        return "online"
    return "degraded" if any(assigned.restarts for assigned in plan.executors.values()) else "starting"
