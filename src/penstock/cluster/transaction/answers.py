"""What the caller of an operation is told, by whichever node is asked."""

from __future__ import annotations

import msgspec

from penstock.cluster.transaction.coordinator import lost, settled
from penstock.cluster.transaction.records import Phase, Store, Tx


class Done(msgspec.Struct, frozen=True):
    """Every node has it. 200 or 201."""

    tx: str
    rev: int


class RolledBack(msgspec.Struct, frozen=True):
    """No node has it. 503 with `nodes`: the reasons, where they differ by node."""

    tx: str
    reason: str
    nodes: dict[str, str]


class Pending(msgspec.Struct, frozen=True):
    """Not known yet. 202 and `/v1/operations/{tx}` when the request cannot wait longer. `nodes`: who is awaited."""

    tx: str
    committed: bool
    nodes: tuple[str, ...]


def answer(store: Store, now: int, tx: Tx) -> Done | RolledBack | Pending:
    """The answer about `tx` at this moment. Done and RolledBack are final."""
    if tx.phase is Phase.ABORTED:
        nodes = {node: vote.reason for node, vote in tx.votes.items() if not vote.yes}
        return RolledBack(tx.id, tx.reason, nodes)
    if settled(store, tx):
        return Done(tx.id, tx.rev)
    heard = tx.acks | set(lost(store, tx)) if tx.phase is Phase.FINISHED else tx.votes.keys()
    return Pending(tx.id, tx.phase is not Phase.PREPARING, tuple(sorted(tx.participants.keys() - heard)))
