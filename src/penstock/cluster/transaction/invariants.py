"""What must hold, as checks that return what is broken: over the store, over each of its changes, and over a cluster at
rest. The simulator asks after every step; an agent in debugging may as well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from penstock.cluster.transaction.coordinator import settled
from penstock.cluster.transaction.records import Entry, Kind, Phase, State, Store, Tx, unlocked

_WAYS = {
    Phase.PREPARING: {Phase.PREPARING, Phase.COMMITTING, Phase.ABORTED},
    Phase.COMMITTING: {Phase.COMMITTING, Phase.FINISHED},
    Phase.FINISHED: {Phase.FINISHED},
    Phase.ABORTED: {Phase.ABORTED},
}
_FROM = {Kind.ADD: State.DELETED, Kind.OFFLINE: State.ONLINE}
"""The state that an operation finds; OFFLINE where it is not said."""


def store(at: Store) -> Iterator[str]:
    """What is broken in the store by itself."""
    open_ = {tx.id: tx for tx in at.open()}
    for entry in at.models.values():
        if entry.lock and (entry.lock not in open_ or open_[entry.lock].operation.model != entry.name):
            yield f"{entry.name} is locked by {entry.lock}, which is not an open transaction of it"
        if entry.generation > at.rev:
            yield f"{entry.name} has generation {entry.generation}, the catalogue is at {at.rev}"
        if entry.generation == 0 and not entry.lock:
            yield f"{entry.name} is a place kept for nobody"
    for tx in open_.values():
        held = at.models.get(tx.operation.model)
        if held is None or held.lock != tx.id:
            yield f"{tx.id} is open and does not hold the lock of {tx.operation.model}"
        elif held.generation != tx.base:
            yield f"{tx.operation.model} changed under {tx.id}"
        elif held.state is not _FROM.get(tx.operation.kind, State.OFFLINE):
            yield f"{tx.operation.kind.value} of {held.name}, which is {held.state.value}"


def change(before: Store, after: Store, now: int) -> Iterator[str]:
    """What is broken by a change from `before` to `after` within one lineage."""
    if after.rev < before.rev:
        yield f"the revision fell from {before.rev} to {after.rev}"
    finished = []
    for tx_id, old in before.txs.items():
        new = after.txs.get(tx_id)
        if new is None and (old.open or (old.phase is Phase.FINISHED and not settled(before, old))):
            yield f"{tx_id} was {old.phase.value} and not settled, and is gone"
        if new is None or new is old:
            continue
        if new.phase not in _WAYS[old.phase]:
            yield f"{tx_id} went from {old.phase.value} to {new.phase.value}"
        if new.phase is not old.phase and new.phase is Phase.COMMITTING:
            yield from _commit(after, new, now)
        if new.phase is not old.phase and new.phase is Phase.FINISHED:
            finished.append(new)
    made = [tx.rev for tx in finished] or [before.rev + 1] * (after.incarnations != before.incarnations)
    if after.rev != before.rev and made != [after.rev]:
        yield f"revision {after.rev} was not made by one transaction or arrival"
    changed = {tx.operation.model for tx in finished}
    if after.models is not before.models:
        for name in before.models.keys() | after.models.keys():
            if name not in changed and _bare(before.models.get(name)) != _bare(after.models.get(name)):
                yield f"{name} changed without a transaction"


def _bare(entry: Entry | None) -> Entry | None:
    return None if entry is None or not entry.generation else unlocked(entry)


def _commit(at: Store, tx: Tx, now: int) -> Iterator[str]:
    for node, incarnation in tx.participants.items():
        if node not in tx.votes or not tx.votes[node].yes:
            yield f"{tx.id} was committed without a yes of {node}"
        lease = at.live(node, now)
        if at.members.get(node) != incarnation or lease is None or lease.incarnation != incarnation:
            yield f"{tx.id} was committed though {node} was lost"
    if now >= tx.deadline:
        yield f"{tx.id} was committed after its deadline"


def serving(name: str, entry: Entry, finished: Mapping[str, Entry]) -> Iterator[str]:
    """What is wrong with `entry` being put in effect on a node; `finished`: what each finished transaction has made."""
    if entry.generation > 0 and finished.get(entry.tx) != entry:
        yield f"{name} was made {entry.state.value} by {entry.tx}, which is not committed like that"


def at_rest(at: Store, nodes: Mapping[str, Mapping[str, Entry]]) -> Iterator[str]:
    """What is broken in a cluster where nothing happens any more; `nodes`: what is in effect on each."""
    for tx in at.open():
        yield f"{tx.id} is still {tx.phase.value}"
    for entry in at.models.values():
        if entry.lock:
            yield f"{entry.name} is still locked by {entry.lock}"
    for node, actual in nodes.items():
        if node not in at.members:
            yield f"{node} is not a member"
        elif at.leases[node].applied != at.rev:
            yield f"{node} says that it is at revision {at.leases[node].applied}, the catalogue is at {at.rev}"
        if dict(actual) != dict(at.models):
            yield f"{node} does not have what the catalogue says"
