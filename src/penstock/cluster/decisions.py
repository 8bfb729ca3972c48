"""What the leader may do about a model; `reconcile.decide` chooses, the steward carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from penstock.cluster.plan import Plan
from penstock.placement.plan import ExecutorKey


@dataclass(frozen=True)
class Nothing:
    """All is as it should be, or has to wait for somebody else."""


@dataclass(frozen=True)
class Later:
    """Look again at `at` (Redis seconds)."""

    at: float


@dataclass(frozen=True)
class Told:
    """An entry for the event log."""

    kind: str
    text: str
    level: str = "info"


@dataclass(frozen=True)
class WritePlan:
    """Put this plan in force. `restarted` executors had failed or were lost with their node, and begin empty."""

    plan: Plan
    restarted: tuple[str, ...] = ()
    reason: str = ""
    told: tuple[Told, ...] = ()
    """What it means for people, where it is more than a restart."""
    settled: tuple[str, ...] = ()
    """Executors whose move is over."""


@dataclass(frozen=True)
class DropPlan:
    """Nothing of the model may run."""


@dataclass(frozen=True)
class GiveUp:
    """The model has failed; somebody has to look at it."""

    error: str


@dataclass(frozen=True)
class Sweep:
    """These reports are of nodes that are gone."""

    executors: tuple[str, ...]


Decision: TypeAlias = Nothing | Later | WritePlan | DropPlan | GiveUp | Sweep
Elsewhere: TypeAlias = Mapping[ExecutorKey, str]
"""The executors of all other models -> their node: they count when the load is spread."""
