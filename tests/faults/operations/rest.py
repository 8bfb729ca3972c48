"""What holds when nothing goes on any more: all nodes are what the catalogue says, and nothing is left over."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path

import httpx
import msgspec
import psutil
from tests.faults.operations.cluster import PATIENCE, Cluster, Node, strays

from penstock.cluster.preparation import digests
from penstock.cluster.store import Sight
from penstock.cluster.transaction.records import Journal, State, Store, unlocked


async def at_rest(cluster: Cluster) -> Store:
    """Wait until everything is as it has to be; the catalogue then."""
    limit = time.monotonic() + PATIENCE
    while True:
        sight = await cluster.look()
        wrong = await complaints(cluster, sight)
        if not wrong and (again := await cluster.look()).store.rev == sight.store.rev:
            return again.store
        if time.monotonic() > limit:
            raise AssertionError("the cluster does not come to rest:\n" + "\n".join(wrong))
        await asyncio.sleep(0.1)


async def complaints(cluster: Cluster, sight: Sight) -> list[str]:
    """What is not yet as it has to be."""
    names = [name for name in cluster.alive() if cluster[name].port]
    wrong = list(_catalogue(sight, set(names)))
    if wrong:
        return wrong  # what follows takes longer
    for name in names:
        wrong += _disk(cluster[name], sight.store)
    wrong += await _answers(cluster, names, sight.store)
    if not wrong:
        wrong += await _processes(cluster, names)
    return wrong


def _catalogue(sight: Sight, names: set[str]):
    store = sight.store
    if not store.lineage:
        yield "there is no catalogue"
    if store.members.keys() != names or store.expected:
        yield f"members are {sorted(store.members)}, expected {sorted(store.expected)}; there are {sorted(names)}"
    for name in names:
        lease = store.live(name, sight.now)
        if lease is None or lease.applied != store.rev:
            yield f"{name} has applied {lease and lease.applied} of {store.rev}"
    for tx in store.open():
        yield f"{tx.operation.kind} {tx.id} is {tx.phase.value}"
    for entry in store.models.values():
        if entry.lock or not entry.generation:
            yield f"{entry.name} (generation {entry.generation}) is locked by {entry.lock!r}"
    online = {entry.name for entry in store.models.values() if entry.state is State.ONLINE}
    for name, runtime in sight.runtime.items():
        if name not in online and not runtime.empty:
            yield f"something is left of {name}, which is not online: {runtime}"


def _disk(node: Node, store: Store) -> list[str]:
    wrong = []
    journal = read_journal(node.data / "journal.json")
    models = {name: unlocked(entry) for name, entry in store.models.items()}
    if (journal.lineage, journal.rev, journal.models) != (store.lineage, store.rev, models):
        wrong.append(f"the journal of {node.name} is of {journal.lineage} {journal.rev}: {journal.models}")
    if journal.prepared or journal.decided:
        wrong.append(f"the journal of {node.name} still has {[*journal.prepared, *journal.decided]}")
    wanted = digests(list(store.models.values()))
    found = {entry.name for entry in _entries(node.data / "library")}
    if found != wanted:
        wrong.append(f"the library of {node.name} has {found} and not {wanted}")
    for digest in found & wanted:
        content = (node.data / "library" / digest / "package.whl").read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            wrong.append(f"package {digest} of {node.name} is corrupt")
    for folder in ("staging", "uploads", "tmp", "damaged"):
        if left := _entries(node.data / folder):
            wrong.append(f"{folder} of {node.name} has {[entry.name for entry in left]}")
    return wrong


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def read_journal(path: Path) -> Journal:
    """What a node has fsynced; it may be writing the next one."""
    head, _, body = path.read_bytes().partition(b"\n")
    assert head.split() == [b"penstock-journal-1", hashlib.sha256(body).hexdigest().encode()]
    return msgspec.json.decode(body, type=Journal)


async def _answers(cluster: Cluster, names: list[str], store: Store) -> list[str]:
    """Every node is ready and tells of the same models."""
    wanted = {
        (entry.name, entry.generation, entry.digest, entry.state.value)
        for entry in store.models.values()
        if entry.state is not State.DELETED
    }
    wrong = []
    for name in names:
        try:
            ready = await cluster.get(name, "/readyz")
            models = (await cluster.get(name, "/v1/models")).json()
            view = {(m["name"], m["generation"], m["digest"], m["desired"]) for m in models}
            unsettled = [f"{m['name']} {m['status']} {m['error']}" for m in models if m["status"] != m["desired"]]
        except (httpx.TransportError, TypeError) as error:
            wrong.append(f"{name} does not answer: {error!r}")
            continue
        if ready.status_code != 200:
            wrong.append(f"{name} is not ready: {ready.text}")
        if view != wanted:
            wrong.append(f"{name} tells of {view} and not of {wanted}")
        if unsettled:
            wrong.append(f"{name}: {unsettled}")
    return wrong


async def _processes(cluster: Cluster, names: list[str]) -> list[str]:
    wrong, known = [], set()
    for name in names:
        node = cluster[name]
        holds = await node.report()
        if not holds or node.process is None:
            return [f"{name} has ended"]
        accounted = {*holds["workers"], holds["forkserver"]}
        children = {child.pid for child in psutil.Process(node.process.pid).children(recursive=True)}
        if holds["reserved"]:
            wrong.append(f"{name} still reserves workers for {holds['reserved']}")
        if len(holds["workers"]) != holds["warm"] + holds["in_use"]:
            wrong.append(f"{name} has workers {holds}")
        if children != accounted:
            wrong.append(f"{name} has children {children}, and accounts for {accounted}")
        known |= accounted | {node.process.pid}
    return wrong + strays(cluster.prefix, known)
