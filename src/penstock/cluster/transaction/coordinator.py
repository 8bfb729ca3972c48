"""The life of a transaction in the store. Each function is one atomic step: it sees the whole store at one moment, and
returns the store as it leaves it together with its answer. There is no coordinator to lose: any node calls any of them,
each may be called again at any time, and a call that no longer fits changes nothing.

    BEGIN --> PREPARING --all yes in time--> COMMITTING --FINISH--> FINISHED --acks of all--> settled
                  |
                  +--a no, the deadline, a lost node, ABORT--> ABORTED

A node is lost when it is not the member any more that it was at BEGIN. One whose lease has run out may come back: it is
waited for, until the leader strikes it off or the deadline passes.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from penstock.cluster.transaction.preconditions import Refusal, Why, check
from penstock.cluster.transaction.records import Entry, Operation, Phase, State, Store, Tx, Vote, changed

ARCHIVED_AFTER = 10_000
"""Milliseconds after its deadline at which a transaction that has ended is archived."""
_replace = msgspec.structs.replace


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What BEGIN is asked. `id` is a fresh name for the transaction, `key` the caller's idempotency key."""

    id: str
    operation: Operation
    by: str
    timeout: int
    base: int | None = None
    key: str = ""
    user: str = ""
    """Who asks."""


class Verdict(Enum):
    """What DECIDE does at this moment."""

    WAIT = "wait"
    COMMIT = "commit"
    ABORT = "abort"


def begin(store: Store, now: int, request: Request) -> tuple[Store, str | Refusal]:
    """BEGIN: the id of the transaction (of the first one with this key), or why there is none."""
    operation, key = request.operation, request.key
    if not store.lineage:
        return store, Refusal(Why.UNAVAILABLE, "the catalogue is being rebuilt from the nodes", "try again later")
    if key and (known := store.keys.get(key)):
        if known in store.txs and store.txs[known].operation != operation:
            return store, Refusal(Why.KEY, f"the key {key!r} was used for another request", "use a fresh key")
        return store, known
    if request.id in store.txs:
        return store, request.id
    entry = store.models.get(operation.model)
    if (refusal := check(operation, entry, request.base)) is not None:
        return store, refusal
    if request.by not in store.members:
        return store, Refusal(Why.UNAVAILABLE, f"node {request.by} is not synchronised yet", "ask another node")
    gone = {node: "its lease ran out" for node, inc in store.members.items() if not _there(store, now, node, inc)}
    if gone:
        names = ", ".join(sorted(gone))
        return store, Refusal(Why.UNAVAILABLE, f"not every node is there: {names}", "try again later", gone)
    if entry is None:
        entry = Entry(name=operation.model, generation=0, state=State.DELETED)  # a name must be locked as well
    tx = Tx(
        id=request.id, operation=operation, base=entry.generation,
        participants=store.members, deadline=now + request.timeout, timeout=request.timeout, by=request.by, key=key,
        user=request.user,
    )  # fmt: skip
    return _replace(
        store,
        txs={**store.txs, tx.id: tx},
        keys={**store.keys, key: tx.id} if key else store.keys,
        models={**store.models, entry.name: _replace(entry, lock=tx.id)},
    ), tx.id


def _there(store: Store, now: int, node: str, incarnation: int) -> bool:
    lease = store.live(node, now)
    return lease is not None and lease.incarnation == incarnation


def lost(store: Store, tx: Tx) -> list[str]:
    """The participants that are no longer the members that they were at BEGIN."""
    return [node for node, incarnation in tx.participants.items() if store.members.get(node) != incarnation]


def verdict(store: Store, now: int, tx: Tx) -> tuple[Verdict, str]:
    """What DECIDE does about a PREPARING transaction, and why. An abort always wins over a commit."""
    if refusals := {node: vote.reason for node, vote in tx.votes.items() if not vote.yes}:
        return Verdict.ABORT, "; ".join(f"{node}: {reason}" for node, reason in sorted(refusals.items()))
    if gone := lost(store, tx):
        return Verdict.ABORT, "; ".join(f"{node}: was lost" for node in sorted(gone))
    missing = sorted(tx.participants.keys() - tx.votes.keys())
    if now >= tx.deadline:
        late = "; ".join(f"{node}: did not answer in time" for node in missing)
        return Verdict.ABORT, late or "decided after the deadline"
    there = all(_there(store, now, node, incarnation) for node, incarnation in tx.participants.items())
    return (Verdict.COMMIT, "") if there and not missing else (Verdict.WAIT, "")


def vote(store: Store, now: int, tx_id: str, node: str, incarnation: int, said: Vote) -> tuple[Store, Phase | None]:
    """VOTE, and DECIDE when that decides it. Only the incarnation that was there at BEGIN has a vote, and only one."""
    tx = store.txs.get(tx_id)
    if tx is None or tx.phase is not Phase.PREPARING or tx.participants.get(node) != incarnation:
        return store, None if tx is None else tx.phase
    if node not in tx.votes:
        store = _put(store, _replace(tx, votes={**tx.votes, node: said}))
    return decide(store, now, tx_id)


def decide(store: Store, now: int, tx_id: str) -> tuple[Store, Phase | None]:
    """DECIDE: the phase afterwards, `None` for an unknown transaction."""
    tx = store.txs.get(tx_id)
    if tx is None or tx.phase is not Phase.PREPARING:
        return store, None if tx is None else tx.phase
    what, reason = verdict(store, now, tx)
    if what is Verdict.COMMIT:
        return _put(store, _replace(tx, phase=Phase.COMMITTING)), Phase.COMMITTING
    if what is Verdict.ABORT:
        return _aborted(store, tx, reason), Phase.ABORTED
    return store, tx.phase


def abort(store: Store, now: int, tx_id: str, reason: str) -> tuple[Store, Phase | None]:
    """ABORT for a reason of the caller's: its own clock says that the time is over, or a user cancels. Too late once
    it is decided."""
    tx = store.txs.get(tx_id)
    if tx is None or tx.phase is not Phase.PREPARING:
        return store, None if tx is None else tx.phase
    return _aborted(store, tx, reason), Phase.ABORTED


def finish(store: Store, now: int, tx_id: str) -> tuple[Store, Phase | None]:
    """FINISH: the next revision, the model changed and unlocked, all in one step."""
    tx = store.txs.get(tx_id)
    if tx is None or tx.phase is not Phase.COMMITTING:
        return store, None if tx is None else tx.phase
    rev = store.rev + 1
    name = tx.operation.model
    models = {**store.models, name: changed(store.models.get(name), tx, rev)}
    store = _replace(store, rev=rev, models=models)
    return _put(store, _replace(tx, phase=Phase.FINISHED, rev=rev)), Phase.FINISHED


def ack(store: Store, now: int, node: str, incarnation: int, lineage: tuple[str, ...], rev: int) -> tuple[Store, bool]:
    """ACK: this incarnation has applied, and fsynced, everything up to `rev`."""
    lease = store.live(node, now)
    if lineage != store.lineage or rev > store.rev or lease is None or lease.incarnation != incarnation:
        return store, False
    txs = {
        tx_id: _replace(tx, acks=tx.acks | {node})
        for tx_id, tx in store.txs.items()
        if tx.phase is Phase.FINISHED
        if tx.rev <= rev and tx.participants.get(node) == incarnation and node not in tx.acks
    }
    leases = {**store.leases, node: _replace(lease, applied=max(lease.applied, rev))}
    return _replace(store, leases=leases, txs={**store.txs, **txs}), True


def settled(store: Store, tx: Tx) -> bool:
    """Whether every participant has applied a FINISHED transaction, or is lost and will synchronise when it returns."""
    return tx.phase is Phase.FINISHED and tx.participants.keys() <= tx.acks | set(lost(store, tx))


def archive(store: Store, now: int) -> tuple[Store, tuple[Tx, ...]]:
    """ARCHIVE: take out what has ended and interests no node any more, a while after its deadline; the caller keeps it
    for those who ask, and shows it to BEGIN when its key comes again. A settled one is in every journal; it is given
    as acknowledged by all, so that `answers.answer` says the same for ever."""
    ended = {
        tx.id: _replace(tx, acks=frozenset(tx.participants)) if tx.phase is Phase.FINISHED else tx
        for tx in store.txs.values()
        if now >= tx.deadline + ARCHIVED_AFTER and (tx.phase is Phase.ABORTED or settled(store, tx))
    }
    if not ended:
        return store, ()
    return _replace(
        store,
        txs={tx_id: tx for tx_id, tx in store.txs.items() if tx_id not in ended},
        keys={key: tx_id for key, tx_id in store.keys.items() if tx_id not in ended},
    ), tuple(ended.values())


def _put(store: Store, tx: Tx) -> Store:
    return _replace(store, txs={**store.txs, tx.id: tx})


def _aborted(store: Store, tx: Tx, reason: str) -> Store:
    models = dict(store.models)
    entry = models.get(tx.operation.model)
    if entry is not None and entry.lock == tx.id:
        models[entry.name] = _replace(entry, lock="")
        if entry.generation == 0:
            del models[entry.name]
    return _put(_replace(store, models=models), _replace(tx, phase=Phase.ABORTED, reason=reason))
