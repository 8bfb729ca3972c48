"""One operation under one fault, and what must be true of it whatever the fault was."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from tests.faults.operations.changes import KINDS, NOTHING, Told, happened
from tests.faults.operations.cluster import Cluster, fresh
from tests.faults.operations.rest import at_rest

from penstock.cluster.transaction.records import Store

MODEL = "default/chain"
_REVIVED_AT_ONCE = ("add", "online", "delete")
"""In these what was killed comes back while the others still wait for it; in the others, after they went on without."""
Fault: TypeAlias = Callable[[Cluster, str, str, str], Awaitable[Told]]
"""(cluster, kind, the node that is asked, idempotency key) -> what the caller was told."""


async def under(fault: Fault, cluster: Cluster, expected: str | None = None) -> dict[str, Told]:
    """All five operations under a fault, each asked of another node. `expected`: what has to come of each; `None`: it
    may be done or rolled back. What the callers were told at first, by operation."""
    answers = {}
    store = await at_rest(cluster)
    for turn, kind in enumerate(KINDS):
        answers[kind], store = await one(fault, cluster, kind, "abc"[turn % 3], store, expected)
    return answers


async def one(
    fault: Fault, cluster: Cluster, kind: str, asked: str, rest: Store, expected: str | None = None
) -> tuple[Told, Store]:
    """One operation, checked: see the module. It has happened at the end, at last without a fault. `rest`: the
    catalogue before; it is given back as it is afterwards."""
    key = fresh()
    before = rest.models.get(MODEL)
    first = answer = await fault(cluster, kind, asked, key)
    elsewhere = next(name for name in cluster.others(asked) if cluster[name].alive)
    if kind in _REVIVED_AT_ONCE:
        await cluster.revive(ready=False)
    if first.what in ("nothing", "pending") or first.later:
        answer = await cluster.insist(kind, elsewhere, key=key)
    await cluster.revive()
    await cluster.ready()
    rest = await at_rest(cluster)
    after = rest.models.get(MODEL)
    where = f"{kind}: first {first}, then {answer}; it was {before}, it is {after}"
    assert answer.what in ("done", "rolled back"), where
    assert (answer.what == "done") == happened(kind, before, after, cluster.packages), where
    assert expected is None or answer.what == expected, where
    repeated = await cluster.insist(kind, asked, key=key)
    assert (repeated.what, repeated.operation) == (answer.what, answer.operation), f"{where}; again: {repeated}"
    assert (await cluster.look()).store.models.get(MODEL) == after, where
    if answer.what != "done":
        plain = await cluster.insist(kind, elsewhere)
        assert plain.what == "done", f"{where}; without any fault: {plain}"
        rest = await at_rest(cluster)
        assert happened(kind, after, rest.models.get(MODEL), cluster.packages)
    return first, rest


async def lost(cluster: Cluster, kind: str, asked: str, key: str) -> Told:
    """Ask, and have the answer lost: the connection breaks."""
    answer = await cluster.ask(kind, asked, key=key)
    assert answer == NOTHING, f"{kind}: {asked} was to be killed, and answered {answer}"
    return answer
