"""What is written down: the catalogue as Redis keeps it, a transaction, and the journal that each node keeps on disk.

Everything is frozen; a change makes a new value. Times in the store are milliseconds of Redis `TIME`; nothing here
reads a clock. A deleted model stays as an entry in state DELETED, so that its generation never starts again.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import msgspec

VERSIONS_KEPT = 10
"""Earlier versions of a model that the catalogue remembers, for `rollback`."""
KEYS_KEPT = 256
"""Idempotency keys of committed operations that a node's journal remembers."""


class Kind(Enum):
    """What an operation does. A rollback and a new configuration are updates."""

    ADD = "add"
    UPDATE = "update"
    DELETE = "delete"
    ONLINE = "online"
    OFFLINE = "offline"


class State(Enum):
    """What a model is, for the whole cluster."""

    OFFLINE = "offline"
    ONLINE = "online"
    DELETED = "deleted"


class Phase(Enum):
    """How far a transaction is. The only ways: PREPARING to COMMITTING or ABORTED, COMMITTING to FINISHED."""

    PREPARING = "preparing"
    COMMITTING = "committing"
    FINISHED = "finished"
    ABORTED = "aborted"


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. `digest` and `version` are for ADD and UPDATE; without a digest the package stays as it is.
    `config` and `options` are JSON text, `None`: as it is."""

    kind: Kind
    model: str
    digest: str = ""
    config: str | None = None
    options: str | None = None
    """How it is to run: executors, recovery, …"""
    version: str = ""
    """The package's own version, for people."""
    live: bool = False
    """An update of a model that is online, and stays that."""
    back_to: int = 0
    """An update that brings back the version of this generation; for people."""
    undo: bool = False
    """What it replaces could not take over, and is no version to go back to."""

    @property
    def name(self) -> str:
        """What users call it."""
        return "rollback" if self.back_to else self.kind.value


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """What a model was before its package or its configuration changed."""

    generation: int
    digest: str
    config: str
    options: str = "{}"
    version: str = ""
    changed: int = 0
    user: str = ""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One model in the catalogue."""

    name: str
    generation: int
    """The catalogue revision that made it what it is: never given twice, also after a delete."""
    state: State
    digest: str = ""
    config: str = "{}"
    options: str = "{}"
    version: str = ""
    changed: int = 0
    """When the transaction that made it what it is began, ms of Redis TIME; 0: nobody knows."""
    user: str = ""
    """Who asked for that transaction."""
    history: tuple[Version, ...] = ()
    """Earlier versions, the latest last."""
    tx: str = ""
    """The transaction that made it what it is."""
    lock: str = ""
    """The open transaction that is about to change it."""
    since: int = 0
    """With live updates: the generation with which it went online. 0: it has had none since."""

    @property
    def run(self) -> int:
        """The generation with which it went online: live updates leave it, and what runs goes on under it."""
        return self.since or self.generation


class Vote(msgspec.Struct, frozen=True):
    """What one participant said. `reason` is for a no."""

    yes: bool
    reason: str = ""


class Tx(msgspec.Struct, frozen=True, kw_only=True):
    """A transaction."""

    id: str
    operation: Operation
    base: int
    """The generation of the model that it changes; 0 when there has never been one of that name."""
    participants: Mapping[str, int]
    """Every member at BEGIN -> its incarnation."""
    deadline: int
    timeout: int
    """Milliseconds from BEGIN to `deadline`."""
    by: str
    """The node that was asked."""
    key: str = ""
    user: str = ""
    """Who asked."""
    phase: Phase = Phase.PREPARING
    votes: Mapping[str, Vote] = {}
    acks: frozenset[str] = frozenset()
    reason: str = ""
    """Why it was aborted."""
    rev: int = 0
    """The revision that it made, once FINISHED."""

    @property
    def open(self) -> bool:
        """Whether it still holds its lock."""
        return self.phase is Phase.PREPARING or self.phase is Phase.COMMITTING

    @property
    def begun(self) -> int:
        """When BEGIN was, ms of Redis TIME."""
        return self.deadline - self.timeout


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A node's lease. A node that holds one need not be a member yet: it may be synchronising."""

    incarnation: int
    nonce: str
    expires: int
    applied: int = -1
    """The catalogue revision that this incarnation has applied."""
    since: int = 0
    """From when on it has been in force without a gap, ms."""


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """What a node has fsynced: enough to build the catalogue again from all nodes."""

    node: str
    lineage: tuple[str, ...] = ()
    rev: int = 0
    """The revision that `models` is a copy of, and that the library and the workers of this node had reached."""
    models: Mapping[str, Entry] = {}
    prepared: Mapping[str, Tx] = {}
    """Transactions that this node has voted for, or is about to, and whose end it has not seen."""
    decided: Mapping[str, Tx] = {}
    """Transactions that this node has seen COMMITTING and whose effect is not yet in `models`."""
    members: tuple[str, ...] = ()
    """Whose journals must be seen before the catalogue is rebuilt; see `Store.named`."""
    incarnation: int = 0
    keys: Mapping[str, Tx] = {}
    """Idempotency key -> the committed transaction."""
    round: str = ""
    """Only in an offer: the name of this loss of memory, given by the first offer after it."""
    opens: bool = False
    """Only in an offer: it opens the round, and does not yet count."""


class Store(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that Redis holds for transactions, at one moment."""

    lineage: tuple[str, ...] = ()
    """Names of this catalogue and those that it was rebuilt from, oldest first. Empty: Redis is new or has lost its
    memory, and nothing but `offers` and leases may be written."""
    rev: int = 0
    members: Mapping[str, int] = {}
    """Nodes that were admitted -> incarnation."""
    expected: frozenset[str] = frozenset()
    """Nodes that were members, or that the catalogue was rebuilt with, and that are not members again yet."""
    incarnations: Mapping[str, int] = {}
    leases: Mapping[str, Lease] = {}
    models: Mapping[str, Entry] = {}
    txs: Mapping[str, Tx] = {}
    keys: Mapping[str, str] = {}
    """Idempotency key -> id of its transaction."""
    offers: Mapping[str, Journal] = {}
    """Only while there is no lineage: the journals of the nodes."""

    def open(self) -> list[Tx]:
        """Transactions that are not FINISHED or ABORTED."""
        return [tx for tx in self.txs.values() if tx.open]

    def live(self, node: str, now: int) -> Lease | None:
        """The lease of `node` if it is in force at `now`."""
        lease = self.leases.get(node)
        return lease if lease is not None and lease.expires > now else None

    def named(self, now: int) -> frozenset[str]:
        """The nodes that a journal written now has to name: whoever is a member or could become one."""
        return self.expected | self.members.keys() | {node for node in self.leases if self.live(node, now)}


def unlocked(entry: Entry) -> Entry:
    """The entry as journals and nodes know it."""
    return msgspec.structs.replace(entry, lock="") if entry.lock else entry


def changed(entry: Entry | None, tx: Tx, rev: int) -> Entry:
    """The model as the transaction leaves it, at revision `rev`. `entry` is what it is before."""
    operation = tx.operation
    if operation.kind is Kind.ADD or entry is None:
        return Entry(
            name=operation.model, generation=rev, state=State.OFFLINE, digest=operation.digest,
            config=operation.config or "{}", options=operation.options or "{}", version=operation.version,
            tx=tx.id, changed=tx.begun, user=tx.user,
        )  # fmt: skip
    if operation.kind is Kind.DELETE:
        return Entry(
            name=entry.name, generation=rev, state=State.DELETED, tx=tx.id, changed=tx.begun, user=tx.user
        )  # fmt: skip
    after = msgspec.structs.replace(
        entry, generation=rev, since=entry.run if operation.live else 0, tx=tx.id, changed=tx.begun,
        user=tx.user, lock="",
        config=entry.config if operation.config is None else operation.config,
        options=entry.options if operation.options is None else operation.options,
    )  # fmt: skip
    history = (*entry.history, _version(entry))[-VERSIONS_KEPT:]
    if operation.undo:
        history = tuple(version for version in entry.history if version.generation != operation.back_to)
    if operation.kind is not Kind.UPDATE:
        state = State.ONLINE if operation.kind is Kind.ONLINE else State.OFFLINE
        history = history if after.config != entry.config else entry.history
        return msgspec.structs.replace(after, state=state, history=history)
    if not operation.digest:
        return msgspec.structs.replace(after, history=history)
    return msgspec.structs.replace(after, digest=operation.digest, version=operation.version, history=history)


def _version(entry: Entry) -> Version:
    return Version(
        generation=entry.generation, digest=entry.digest, config=entry.config, options=entry.options,
        version=entry.version, changed=entry.changed, user=entry.user,
    )  # fmt: skip
