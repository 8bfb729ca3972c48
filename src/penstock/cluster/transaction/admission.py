"""Leases and members. Each function is one atomic step, as in `coordinator`.

A node *arrives*: it gets an incarnation and a lease, and synchronises. It is *admitted* when it has applied the
revision that the catalogue still is at, while no transaction is open: so nobody becomes a member between the BEGIN that
counts the participants and the FINISH that they voted for. A newcomer makes a revision by its arrival, and is admitted
when everybody else has applied that, too: so the journals of all name it, and nobody rebuilds the catalogue without it.

A lease that has run out is no judgement: a store that was away has ended all of them. A node is lost when it is *struck
off* (FORGET), or when its successor has arrived; until then its lease comes to life again by RENEW.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import msgspec

from penstock.cluster.transaction.records import Lease, Store

_replace = msgspec.structs.replace


class Standing(Enum):
    """What the store says to a node that asks for its lease."""

    GRANTED = "granted"
    REVIVED = "revived"
    """Granted again, after it had run out: the leases of others may have run out as well, though they live."""
    REFUSED = "refused"
    """Another process has the name, or this incarnation was struck off."""
    EMPTY = "empty"
    """The store has lost its memory: offer the journal."""


def arrive(
    store: Store, now: int, node: str, nonce: str, length: int, least: int
) -> tuple[Store, tuple[Standing, int]]:
    """ARRIVE: a lease of `length` ms for a new incarnation, above `least`. An earlier incarnation is a member no more,
    so what waits for its vote is aborted, and what waits for its acknowledgement need not."""
    if not store.lineage:
        return store, (Standing.EMPTY, 0)
    held = store.live(node, now)
    if held is not None and held.nonce != nonce:
        return shortened(store, now, node, held, length), (Standing.REFUSED, 0)
    incarnation = max(store.incarnations.get(node, 0), least) + 1
    lease = Lease(incarnation=incarnation, nonce=nonce, expires=now + length, since=now)
    others = store.members.keys() | store.expected
    return _replace(
        store,
        rev=store.rev + 1 if others and node not in others else store.rev,
        incarnations={**store.incarnations, node: incarnation},
        leases={**store.leases, node: lease},
        members=_without(store.members, node),
        expected=store.expected | ({node} & store.members.keys()),
    ), (Standing.GRANTED, incarnation)


def renew(store: Store, now: int, node: str, nonce: str, length: int, incarnation: int) -> tuple[Store, Standing]:
    """RENEW: the lease goes on; also one that has run out, if nobody has struck the node off or taken its name."""
    lease = store.live(node, now)
    if lease is not None and (lease.nonce, lease.incarnation) == (nonce, incarnation):
        lease = _replace(lease, expires=now + length, since=min(lease.since, now))  # TIME may have been moved back
        return _replace(store, leases={**store.leases, node: lease}), Standing.GRANTED
    if not store.lineage:
        return store, Standing.EMPTY
    known_as = store.incarnations.get(node) if node in store.expected else store.members.get(node)
    if lease is not None or known_as != incarnation:
        return store, Standing.REFUSED
    lease = Lease(incarnation=incarnation, nonce=nonce, expires=now + length, since=now)
    return _replace(store, leases={**store.leases, node: lease}), Standing.REVIVED


def admit(
    store: Store, now: int, node: str, incarnation: int, lineage: tuple[str, ...], rev: int
) -> tuple[Store, bool]:
    """ADMIT a node that has applied `rev`."""
    lease = store.live(node, now)
    if lease is None or lease.incarnation != incarnation or (lineage, rev) != (store.lineage, store.rev):
        return store, False
    if store.open() or not lineage:
        return store, False
    if not known(store, now, node):
        return store, False
    return _replace(
        store,
        members={**store.members, node: incarnation},
        expected=store.expected - {node},
        leases={**store.leases, node: _replace(lease, applied=rev)},
    ), True


def leave(store: Store, now: int, node: str, incarnation: int) -> tuple[Store, bool]:
    """LEAVE: the lease ends at once."""
    lease = store.leases.get(node)
    if lease is None or lease.incarnation != incarnation:
        return store, False
    leases = {name: lease for name, lease in store.leases.items() if name != node}
    return _replace(store, leases=leases, members=_without(store.members, node), expected=store.expected - {node}), True


def forget(store: Store, now: int, node: str, incarnation: int, length: int, judge: str = "") -> tuple[Store, bool]:
    """FORGET, by the leader, for every member or expected node, again and again: one without a lease is so no more.

    `judge`: the node that judges; "": an operator, who knows. A node's own lease must have been in force for one whole
    lease: if the store was away, or Redis TIME has jumped, those who live have found it again by then. A newcomer,
    whom the others do not know, judges only when none of them is there to do it."""
    if store.members.get(node) != incarnation and node not in store.expected:
        return store, False
    held = store.live(node, now)
    if held is not None:
        return shortened(store, now, node, held, length), False
    if judge and not _judges(store, now, judge, length):
        return store, False
    return _replace(store, members=_without(store.members, node), expected=store.expected - {node}), True


def _judges(store: Store, now: int, judge: str, length: int) -> bool:
    lease = store.live(judge, now)
    if lease is None or not lease.since <= now - length:
        return False
    known = store.members.keys() | store.expected
    return judge in known or not any(store.live(node, now) for node in known)


def known(store: Store, now: int, node: str) -> bool:
    """Whether the journals of all others name `node`, so that none of them rebuilds the catalogue without it: it was a
    member before, or they have applied the revision that it made by its arrival."""
    others = store.members.keys() | store.expected
    return node in others or all(_applied(store, now, other) == store.rev for other in others)


def _applied(store: Store, now: int, node: str) -> int:
    lease = store.live(node, now)
    return -1 if lease is None else lease.applied


def shortened(store: Store, now: int, node: str, lease: Lease, length: int) -> Store:
    """No lease lasts longer than `length` from now. One that does was granted before Redis TIME was moved back, and
    would keep a dead node alive for as long as that; a living one renews it anyway."""
    if lease.expires <= now + length:
        return store
    return _replace(store, leases={**store.leases, node: _replace(lease, expires=now + length)})


def _without(members: Mapping[str, int], node: str) -> dict[str, int]:
    return {name: incarnation for name, incarnation in members.items() if name != node}
