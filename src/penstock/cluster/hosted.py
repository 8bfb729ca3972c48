"""What an agent remembers of a model in a worker, and what it has not told Redis yet."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from penstock.cluster.hosting import Host, Phase
from penstock.cluster.plan import Report, RunEntry, executor_of
from penstock.exchange.replica.messages import Refused
from penstock.exchange.split.messages import Prepared, Settled, Staged
from penstock.model.environment import Environment
from penstock.worker.messages import Epoch


@dataclass(eq=False)
class Hosted:
    """One `Load` and what became of it."""

    worker: int
    model: str
    epoch: Epoch
    executors: frozenset[str]
    """Places, see `penstock.cluster.hosting`."""
    since: float
    """When its phase began, monotonic."""
    phase: Phase = Phase.LOADING
    connected: int = 0
    knows: int = 0
    primaries: dict[str, str] = field(default_factory=dict)
    """Executor -> its primary, as the worker was last told."""
    releasing: frozenset[str] = frozenset()
    handed: dict[str, float] = field(default_factory=dict)
    """Standby -> when its primary here was last told to hand over to it, monotonic."""

    @property
    def up(self) -> bool:
        """Whether its executors are there."""
        return self.phase in (Phase.LOADED, Phase.STARTED)

    def host(self) -> Host:
        """As `converge` wants it."""
        return Host(
            self.worker, self.model, self.epoch, self.executors, self.phase, self.connected, self.knows, self.releasing
        )

    def place(self, executor: str) -> str | None:
        """The place of an executor here."""
        return next((place for place in self.executors if executor_of(place) == executor), None)


@dataclass
class Pending:
    """What Redis has not been told yet about one model."""

    executors: dict[str, RunEntry | None] = field(default_factory=dict)
    connected: int = 0
    lost: int | None = None


class Place(msgspec.Struct, frozen=True):
    """Where a model's code is on this node."""

    target: str
    """What `Load.target` says."""
    environment: Environment


def with_report(reports: list[Report], new: Report) -> list[Report]:
    """The latest of each kind and standby; of splits, those of the latest one."""
    kept = [old for old in reports if _about(old) != _about(new)]
    if isinstance(new, Prepared | Staged | Settled):
        kept = [old for old in kept if not isinstance(old, Prepared | Staged | Settled) or old.shift >= new.shift]
    return [*kept, new]


def _about(report: Report) -> tuple[type, str]:
    if isinstance(report, Prepared | Staged | Settled):
        return type(report), f"{report.party} {report.shift}"
    return type(report), report.replica if isinstance(report, Refused) else report.standby
