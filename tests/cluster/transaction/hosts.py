"""The machines and the clients of a simulated cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.cluster.transaction import participant
from penstock.cluster.transaction.answers import Done, RolledBack
from penstock.cluster.transaction.coordinator import Request
from penstock.cluster.transaction.preconditions import Refusal
from penstock.cluster.transaction.records import Entry, Journal


class Violation(AssertionError):
    """A promise is broken."""


@dataclass
class Host:
    """A machine. What is above the line is on its disk."""

    name: str
    journal: Journal | None = None
    staged: dict[str, str] = field(default_factory=dict)
    """Transaction -> digest, "" while it is not complete."""
    library: dict[str, set[str]] = field(default_factory=dict)
    # ---
    founder: bool = True
    """Whether it makes a new catalogue when nobody knows of one."""
    machine: participant.Participant | None = None
    process: int = 0
    uploads: set[str] = field(default_factory=set)
    warm: set[str] = field(default_factory=set)
    running: dict[str, Entry] = field(default_factory=dict)
    paused_until: float = 0.0
    cut_until: float = 0.0
    """It alone cannot reach the store until then."""
    mute_until: float = 0.0
    """It neither asks peers nor answers them until then."""
    drift: float = 1.0
    """How fast its monotonic clock goes."""

    def holds(self, digest: str) -> bool:
        """Whether others could fetch it here now."""
        if self.machine is None:
            return False
        return (
            digest in self.uploads
            or digest in self.staged.values()
            or any(digest in digests for digests in self.library.values())
        )


@dataclass
class Client:
    """One request, repeated with one key until there is an answer."""

    request: Request
    calls: int = 0
    tx: str = ""
    first: Done | RolledBack | Refusal | None = None
