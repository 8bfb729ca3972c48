"""The catalogue again, from the journals of the nodes, after Redis has lost its memory.

`offer` and `install` are atomic steps; `rebuild` is a pure function that any node computes from the offers. What it
gives is safe for two reasons. The newest copy is the truth up to its revision, because a node changes its copy only
after FINISH. And a transaction that no journal calls decided was not finished, because FINISH is called only by nodes
that have fsynced the decision; it is aborted. For both, every node that could know more must have offered; and that
is so only if the journals name everybody. Therefore all journals have to name all nodes that take part before anything
is installed: if the memory is lost once more, none of them rebuilds without the one that has meanwhile gone on.

Each loss is a *round*: the first offer after it opens the round, by a name never used before, and does not count. What
counts are offers of nodes that have seen this round; one from before, still under way, does not fit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from penstock.cluster.transaction.admission import shortened
from penstock.cluster.transaction.records import Entry, Journal, Lease, Phase, Store, Tx, changed

SKIPPED = 1000
"""A rebuilt catalogue goes on so many revisions later: beyond every one that was given and that no journal has seen."""
_replace = msgspec.structs.replace


class Waiting(msgspec.Struct, frozen=True):
    """Nodes whose journals are still needed."""

    missing: frozenset[str]


class Unnamed(msgspec.Struct, frozen=True):
    """Every journal of the catalogue must name these nodes first."""

    names: frozenset[str]


class Blank(msgspec.Struct, frozen=True):
    """No journal knows of a catalogue: this may be a new cluster, or those that know have not come yet."""


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """The catalogue to install."""

    ancestors: tuple[str, ...]
    expected: frozenset[str]
    """The nodes that have to come back before anybody rebuilds this catalogue in its turn."""
    rev: int
    models: Mapping[str, Entry]
    txs: Mapping[str, Tx]
    """The committed transactions whose idempotency keys are still known."""


def rebuild(offers: Mapping[str, Journal], without: Collection[str] = ()) -> Rebuilt | Waiting | Unnamed | Blank:
    """What the offers say. `without`: nodes that an operator has declared gone for good; one that has offered is
    there all the same."""
    without = set(without) - offers.keys()
    offers = {node: offer for node, offer in offers.items() if not offer.opens}
    if not any(offer.lineage for offer in offers.values()):
        return Blank()
    best = max(offers.values(), key=lambda offer: (len(offer.lineage), offer.rev))
    known = [offer for offer in offers.values() if offer.lineage == best.lineage]
    doubtful = _in_doubt(known, best)
    named = {best.node, *(node for offer in known for node in offer.members)}
    named |= {node for tx in doubtful.values() for node in tx.participants}
    named -= without
    if missing := named - offers.keys():
        return Waiting(frozenset(missing))
    if any(named - set(offer.members) for offer in known):
        return Unnamed(frozenset(named))
    models, rev = dict(best.models), best.rev + SKIPPED
    committed = {tx.key: tx for offer in known for tx in offer.keys.values()}
    decided = {tx_id for offer in known for tx_id in offer.decided}
    for tx in sorted(doubtful.values(), key=lambda tx: tx.id):
        name = tx.operation.model
        before = models.get(name)
        if tx.id not in decided:
            continue
        rev += 1
        models[name] = changed(before, tx, rev)
        if tx.key:
            committed[tx.key] = _replace(tx, phase=Phase.FINISHED, rev=rev)
    return Rebuilt(
        ancestors=best.lineage,
        expected=frozenset(named),
        rev=rev + 1,
        models=models,
        txs={tx.id: tx for tx in committed.values()},
    )  # fmt: skip


def _in_doubt(offers: Collection[Journal], best: Journal) -> dict[str, Tx]:
    """Transactions whose end the best copy does not show. The lock keeps the generation until a transaction ends, and
    no generation is given twice: another generation than its base means that it ended before."""
    found: dict[str, Tx] = {}
    for offer in offers:
        found.update(offer.prepared)
        found.update(offer.decided)
    generations = {name: entry.generation for name, entry in best.models.items()}
    return {tx_id: tx for tx_id, tx in found.items() if generations.get(tx.operation.model, 0) == tx.base}


def offer(store: Store, now: int, nonce: str, length: int, journal: Journal) -> tuple[Store, bool]:
    """OFFER a journal to a store without a lineage; it is also a lease for `journal.incarnation`, so that flows go on
    while the catalogue is rebuilt."""
    node = journal.node
    held = store.live(node, now)
    if store.lineage:
        return store, False
    if held is not None and held.nonce != nonce:
        return shortened(store, now, node, held, length), False
    if journal.opens == bool(store.offers) or (store.offers and journal.round != round_of(store)):
        return store, False
    lease = Lease(incarnation=journal.incarnation, nonce=nonce, expires=now + length, since=now)
    return _replace(
        store,
        offers={**store.offers, node: journal},
        leases={**store.leases, node: lease},
        incarnations={**store.incarnations, node: max(journal.incarnation, store.incarnations.get(node, 0))},
    ), True


def round_of(store: Store) -> str:
    """The name of this loss of memory; "" before the first offer."""
    return next((offer.round for offer in store.offers.values()), "")


def install(
    store: Store, now: int, offers: Mapping[str, Journal], name: str, rebuilt: Rebuilt | None
) -> tuple[Store, bool]:
    """INSTALL what was made from exactly these offers, as the lineage `name`; `None`: a new, empty catalogue. Nobody
    is a member until it has synchronised."""
    if store.lineage or store.offers != offers:
        return store, False
    leases = {node: _replace(lease, since=now) for node, lease in store.leases.items()}
    if rebuilt is None:
        return _replace(store, lineage=(name,), leases=leases, offers={}), True
    return _replace(
        store,
        lineage=(*rebuilt.ancestors, name),
        rev=rebuilt.rev,
        expected=rebuilt.expected,
        leases=leases,
        models=rebuilt.models,
        txs=rebuilt.txs,
        keys={tx.key: tx.id for tx in rebuilt.txs.values()},
        offers={},
    ), True


def belongs(journal: Journal, store: Store) -> bool:
    """Whether the node with this journal may take part: it is new, or its catalogue is an ancestor of the store's."""
    return journal.lineage == store.lineage[: len(journal.lineage)]
