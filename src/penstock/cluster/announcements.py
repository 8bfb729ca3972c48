"""What a change of the store means to people: entries for the event log, and whether anybody has to look at once.

Pure. The entries are derived from the store before and after, so they cannot disagree with what was done; the store
appends them in the same atomic step.
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.cluster.transaction.coordinator import settled
from penstock.cluster.transaction.records import Kind, Phase, Store, Tx

_DONE = {
    Kind.ADD: "model.added",
    Kind.UPDATE: "model.updated",
    Kind.DELETE: "model.deleted",
    Kind.ONLINE: "model.online",
    Kind.OFFLINE: "model.offline",
}
_VERBS = {
    Kind.ADD: "was added",
    Kind.UPDATE: "was updated",
    Kind.DELETE: "was deleted",
    Kind.ONLINE: "is online",
    Kind.OFFLINE: "is offline",
}


def announce(before: Store, after: Store, node: str) -> list[dict[str, str]]:
    """Entries for the log about the change that `node` has made: kind, text, level, node and, where they apply, model
    and user."""
    if before.lineage != after.lineage:
        return [_catalogue(before, after, node)]
    entries: list[dict[str, str]] = []
    if after.lineage and (_named(before) != _named(after) or before.incarnations is not after.incarnations):
        entries += _nodes(before, after)
    if before.txs is not after.txs:
        entries += _operations(before, after)
    return entries


def worth_ringing(before: Store, after: Store) -> bool:
    """Whether others have something to do, or an answer to give, after the change. A vote that decides nothing and an
    acknowledgement that is not the last one need no bell: everybody looks again soon anyway."""
    if before.lineage != after.lineage or before.offers is not after.offers:
        return True
    if before.members is not after.members or before.expected != after.expected or before.rev != after.rev:
        return True
    if _newcomer_waits(after) and _applied(before) != _applied(after):
        return True
    if before.txs is after.txs:
        return False
    for tx_id, tx in after.txs.items():
        old = before.txs.get(tx_id)
        if old is tx:
            continue
        if old is None or old.phase is not tx.phase:
            return True
        if tx.phase is Phase.FINISHED and settled(after, tx) and not settled(before, old):
            return True
    return False


def _newcomer_waits(store: Store) -> bool:
    return not store.leases.keys() <= store.members.keys()


def _applied(store: Store) -> dict[str, int]:
    return {node: lease.applied for node, lease in store.leases.items()}


def _catalogue(before: Store, after: Store, node: str) -> dict[str, str]:
    if len(after.lineage) == 1:
        return _entry("catalogue.founded", f"node {node} made a new, empty catalogue", node)
    text = f"node {node} rebuilt the catalogue from {len(before.offers)} journals: revision {after.rev}"
    text += f", {len(after.models)} models"
    if after.expected:
        text += f"; awaited: {', '.join(sorted(after.expected))}"
    return _entry("catalogue.rebuilt", text, node, level="warning")


def _nodes(before: Store, after: Store) -> Iterator[dict[str, str]]:
    for node, incarnation in after.members.items():
        if before.members.get(node) != incarnation:
            yield _entry("node.joined", f"node {node} joined (incarnation {incarnation})", node)
    for node, incarnation in after.incarnations.items():
        if before.incarnations.get(node, 0) < incarnation:
            text = f"node {node} arrived (incarnation {incarnation}) and synchronises"
            yield _entry("node.arrived", text, node)
    for node in sorted(_named(before) - _named(after)):
        if node in before.leases and node not in after.leases:
            yield _entry("node.left", f"node {node} left", node)
        else:
            yield _entry("node.lost", f"node {node} is lost: its lease ran out", node, level="warning")


def _named(store: Store) -> frozenset[str]:
    return store.expected | store.members.keys()


def _operations(before: Store, after: Store) -> Iterator[dict[str, str]]:
    for tx_id, tx in after.txs.items():
        old = before.txs.get(tx_id)
        if old is tx or (old is not None and old.phase is tx.phase):
            continue
        if old is None and tx.phase is Phase.PREPARING:
            text = f"{tx.operation.name} of {tx.operation.model} began at {tx.by}{_by(tx)}: operation {tx.id}"
            yield _about("operation.begun", text, tx)
        elif tx.phase is Phase.ABORTED:
            text = f"{tx.operation.name} of {tx.operation.model} was rolled back{_by(tx)}: {tx.reason}"
            yield _about("operation.rolled_back", text, tx, level="warning")
        elif tx.phase is Phase.FINISHED:
            version = f" {tx.operation.version}" if tx.operation.version else ""
            verb = _VERBS[tx.operation.kind]
            if tx.operation.back_to:
                verb = f"was rolled back to generation {tx.operation.back_to}"
            text = f"model {tx.operation.model}{version} {verb}{_by(tx)} (generation {tx.rev})"
            yield _about(_DONE[tx.operation.kind], text, tx)


def _by(tx: Tx) -> str:
    return f" for {tx.user}" if tx.user else ""


def _about(kind: str, text: str, tx: Tx, level: str = "info") -> dict[str, str]:
    entry = _entry(kind, text, tx.by, level)
    entry["model"] = tx.operation.model
    if tx.user:
        entry["user"] = tx.user
    return entry


def _entry(kind: str, text: str, node: str, level: str = "info") -> dict[str, str]:
    return {"kind": kind, "text": text, "level": level, "node": node}
