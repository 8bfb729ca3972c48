"""Nodes that come while operations are under way, and nodes that were away while models changed."""

from __future__ import annotations

import asyncio

import pytest
from tests.cluster.nodes import asynchronous, until
from tests.faults.operations.changes import Told
from tests.faults.operations.cluster import PATIENCE, Cluster
from tests.faults.operations.course import MODEL, under
from tests.faults.operations.rest import at_rest

from penstock.cluster.transaction.records import State

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]


@asynchronous
async def test_a_node_joins_in_the_middle(valkey, prefix, packages, tmp_path):
    """It has no vote, becomes a member only afterwards, and then has everything."""

    async def fault(cluster: Cluster, kind: str, asked: str, key: str) -> Told:
        slow = cluster.others(asked, "d")[0]
        await cluster[slow].order("hold before SendVote")
        asking = asyncio.create_task(cluster.ask(kind, asked, key=key))
        await cluster[slow].reached("before SendVote")
        await cluster.start("d", ready=False)
        await until(lambda: has_a_lease(cluster, "d"), PATIENCE)
        await asyncio.sleep(0.5)  # it would be admitted by now
        store = (await cluster.look()).store
        assert "d" not in store.members
        (tx,) = store.open()
        assert sorted(tx.participants) == ["a", "b", "c"]
        await cluster[slow].order("release")
        answer = await asking
        assert answer.what == "done", answer
        await cluster["d"].ready()
        store = await at_rest(cluster)
        assert sorted(store.members) == ["a", "b", "c", "d"]
        await cluster["d"].leave()
        del cluster.nodes["d"]
        return answer

    async with Cluster(valkey, prefix, packages, tmp_path) as cluster:
        await under(fault, cluster, "done")


async def has_a_lease(cluster: Cluster, name: str) -> bool:
    return name in (await cluster.look()).store.leases


@asynchronous
async def test_a_node_was_away_while_models_changed(valkey, prefix, packages, tmp_path):
    """It comes back with its data directory: what it lacks it gets, what is no more it removes."""
    async with Cluster(valkey, prefix, packages, tmp_path) as cluster:
        for away, kinds in (("c", ("add", "update", "online")), ("b", ("offline", "delete", "add"))):
            if away == "c":
                await cluster[away].kill()
            else:
                await cluster[away].leave()
            await until(lambda away=away: struck_off(cluster, away), PATIENCE)  # until then it would be waited for
            there = cluster.others(away)
            for turn, kind in enumerate(kinds):
                answer = await cluster.insist(kind, there[turn % 2])
                assert answer.what == "done", answer
            await cluster.revive()
            entry = (await at_rest(cluster)).models[MODEL]
            assert (entry.state, entry.digest) == (
                (State.ONLINE if away == "c" else State.OFFLINE),
                packages.digests()[kinds[-1]],
            )


async def struck_off(cluster: Cluster, name: str) -> bool:
    return name not in (await cluster.look()).store.members


@asynchronous
async def test_nobody_hears_the_bell(valkey, prefix, packages, tmp_path):
    async def plain(cluster: Cluster, kind: str, asked: str, key: str) -> Told:
        return await cluster.ask(kind, asked, key=key)

    async with Cluster(valkey, prefix, packages, tmp_path, "deaf") as cluster:
        await under(plain, cluster, "done")
