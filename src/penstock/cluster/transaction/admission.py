"""Leases and members. Each function is one Lua script, as in `coordinator`.

A node *arrives*: it gets an incarnation and a lease, and synchronises. It is *admitted* when it has applied the
revision that the catalogue still is at, while no transaction is open: so nobody becomes a member between the BEGIN that
counts the participants and the FINISH that they voted for.
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
    REFUSED = "refused"
    """Another process has the name, or this incarnation's lease ran out."""
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
    lease = Lease(incarnation=incarnation, nonce=nonce, expires=now + length)
    return _replace(
        store,
        incarnations={**store.incarnations, node: incarnation},
        leases={**store.leases, node: lease},
        members=_without(store.members, node),
        expected=store.expected | ({node} & store.members.keys()),
    ), (Standing.GRANTED, incarnation)


def renew(store: Store, now: int, node: str, nonce: str, length: int, incarnation: int) -> tuple[Store, Standing]:
    """RENEW: the lease goes on, unless it has run out."""
    lease = store.live(node, now)
    if lease is None or (lease.nonce, lease.incarnation) != (nonce, incarnation):
        return store, Standing.REFUSED if store.lineage else Standing.EMPTY
    return _replace(store, leases={**store.leases, node: _replace(lease, expires=now + length)}), Standing.GRANTED


def admit(
    store: Store, now: int, node: str, incarnation: int, lineage: tuple[str, ...], rev: int
) -> tuple[Store, bool]:
    """ADMIT a node that has applied `rev`."""
    lease = store.live(node, now)
    if lease is None or lease.incarnation != incarnation or (lineage, rev) != (store.lineage, store.rev):
        return store, False
    if store.open() or not lineage:
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


def forget(store: Store, now: int, node: str, incarnation: int, length: int) -> tuple[Store, bool]:
    """FORGET, by the leader, for every member or expected node, again and again: one without a lease is so no more."""
    if store.members.get(node) != incarnation and node not in store.expected:
        return store, False
    held = store.live(node, now)
    if held is not None:
        return shortened(store, now, node, held, length), False
    return _replace(store, members=_without(store.members, node), expected=store.expected - {node}), True


def shortened(store: Store, now: int, node: str, lease: Lease, length: int) -> Store:
    """No lease lasts longer than `length` from now. One that does was granted before Redis TIME was moved back, and
    would keep a dead node alive for as long as that; a living one renews it anyway."""
    if lease.expires <= now + length:
        return store
    return _replace(store, leases={**store.leases, node: _replace(lease, expires=now + length)})


def _without(members: Mapping[str, int], node: str) -> dict[str, int]:
    return {name: incarnation for name, incarnation in members.items() if name != node}
