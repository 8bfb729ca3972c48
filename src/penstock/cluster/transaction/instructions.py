"""What a participant tells its surroundings to do, and what it is told.

Instructions that call the store name the function; the agent carries out each one once, reports `Done` with the answer
or `Failed`, and never repeats one by itself: the participant asks again if it still wants it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from penstock.cluster.transaction.admission import Standing
from penstock.cluster.transaction.rebuild import Rebuilt
from penstock.cluster.transaction.records import Entry, Journal, Store, Tx


@dataclass(frozen=True)
class Look:
    """Read the store in one step. Done: `Seen`."""


@dataclass(frozen=True)
class Arrive:
    """`admission.arrive`. Done: `Granted`."""

    least: int


@dataclass(frozen=True)
class Renew:
    """`admission.renew`. Done: `Granted`."""

    incarnation: int


@dataclass(frozen=True)
class AskPeers:
    """Ask every one of `members` for its `Participant.promise`, and those who say no again, some ten times in a sixth
    of a lease: they may be about to find out themselves. Done, at the latest after that time: `Promised`; a node that
    does not answer has not promised."""

    members: frozenset[str]


@dataclass(frozen=True)
class Admit:
    """`admission.admit`."""

    incarnation: int
    lineage: tuple[str, ...]
    rev: int


@dataclass(frozen=True)
class Leave:
    """`admission.leave`."""

    incarnation: int
    reason: str


@dataclass(frozen=True, eq=False)
class Offer:
    """`rebuild.offer`. Done: `Granted`."""

    journal: Journal


@dataclass(frozen=True, eq=False)
class Install:
    """`rebuild.install`, as a lineage with a fresh random name. `None`: a new cluster."""

    based_on: Store
    rebuilt: Rebuilt | None


@dataclass(frozen=True)
class SendVote:
    """`coordinator.vote`."""

    tx: str
    incarnation: int
    yes: bool
    reason: str = ""


@dataclass(frozen=True)
class Decide:
    """`coordinator.decide`."""

    tx: str


@dataclass(frozen=True)
class Abort:
    """`coordinator.abort`."""

    tx: str
    reason: str


@dataclass(frozen=True)
class Finish:
    """Wait for the configured replicas of the store, then `coordinator.finish`."""

    tx: str


@dataclass(frozen=True)
class Ack:
    """`coordinator.ack`."""

    incarnation: int
    lineage: tuple[str, ...]
    rev: int


@dataclass(frozen=True, eq=False)
class Prepare:
    """Everything that can fail, invisibly: fetch, verify, environment, self-test, fsync, a warm worker with its gate
    shut. Failed: the reason is this node's no."""

    tx: Tx


@dataclass(frozen=True)
class Cancel:
    """Let a running Prepare fail soon. Nothing is reported for this one."""

    tx: str


@dataclass(frozen=True)
class Discard:
    """Remove what Prepare has made for a transaction: files, warm worker. Nothing there: done."""

    tx: str


@dataclass(frozen=True, eq=False)
class Write:
    """Replace the journal on disk: temporary file, fsync, rename, fsync of the directory. Failed: the old one is surely
    in place (an agent that cannot say so ends its process)."""

    journal: Journal


@dataclass(frozen=True, eq=False)
class Apply:
    """Make this node have the model as the entry says: swap, open the gate, stop, remove; from what `entry.tx` has
    prepared, or from any node that has the digest. Idempotent. A gate opens only while `Participant.trusted`."""

    entry: Entry


@dataclass(frozen=True)
class StopExecutors:
    """Stop everything of users that runs here."""

    reason: str


@dataclass(frozen=True)
class DropUpload:
    """Remove a package that was uploaded to this node."""

    digest: str


Instruction: TypeAlias = (
    Look | Arrive | Renew | AskPeers | Admit | Leave | Offer | Install | SendVote | Decide | Abort | Finish | Ack
    | Prepare | Cancel | Discard | Write | Apply | StopExecutors | DropUpload
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """The store at one moment, and its TIME in ms."""

    store: Store
    now: int


@dataclass(frozen=True)
class Granted:
    """What the store said about the lease."""

    standing: Standing
    incarnation: int = 0


@dataclass(frozen=True)
class Promised:
    """Whether every node that was asked has promised."""

    all: bool


@dataclass(frozen=True)
class Done:
    """An instruction has been carried out."""

    instruction: Instruction
    answer: Seen | Granted | Promised | None = None


@dataclass(frozen=True)
class Failed:
    """It has not, or nobody knows: a call to the store may have had its effect."""

    instruction: Instruction
    reason: str = ""


@dataclass(frozen=True)
class Rang:
    """The bell, or any other reason to look at once."""


@dataclass(frozen=True)
class Tick:
    """Time has passed; to come ten times per lease or more."""


@dataclass(frozen=True)
class Uploaded:
    """A package was uploaded to this node; its request gives up after `patience` seconds."""

    digest: str
    patience: float


@dataclass(frozen=True)
class GivenUp:
    """An operator declares that these nodes are gone for good, while the catalogue waits for their journals. What only
    they knew is lost."""

    nodes: frozenset[str]


Event: TypeAlias = Done | Failed | Rang | Tick | Uploaded | GivenUp
