"""The node that was asked for an operation is killed: the others end what it began, and tell whoever asks again."""

from __future__ import annotations

import asyncio

import pytest
from tests.cluster.nodes import asynchronous
from tests.faults.operations.changes import Told
from tests.faults.operations.cluster import Cluster
from tests.faults.operations.course import lost, under

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]


@asynchronous
async def test_without_a_fault_all_five_are_done(valkey, prefix, packages, tmp_path):
    async def plain(cluster: Cluster, kind: str, asked: str, key: str) -> Told:
        return await cluster.ask(kind, asked, key=key)

    async with Cluster(valkey, prefix, packages, tmp_path, warm=True) as cluster:
        for answer in (await under(plain, cluster, "done")).values():
            assert answer.what == "done"


@asynchronous
async def test_killed_when_it_has_begun(valkey, prefix, packages, tmp_path):
    async def fault(cluster: Cluster, kind: str, asked: str, key: str) -> Told:
        await cluster[asked].order("kill after Begin", "hold before Prepare")
        answer = await lost(cluster, kind, asked, key)
        await cluster[asked].died()
        return answer

    async with Cluster(valkey, prefix, packages, tmp_path) as cluster:
        await under(fault, cluster, "rolled back")


@pytest.mark.parametrize("moment", ["before Decided", "before Finish", "after Finish", "before Reply"])
@asynchronous
async def test_killed_after_the_decision(valkey, prefix, packages, tmp_path, moment):
    async def fault(cluster: Cluster, kind: str, asked: str, key: str) -> Told:
        others = cluster.others(asked)
        await cluster[asked].order(f"kill {moment}")
        if moment != "before Reply":  # they would finish it before the one that was asked
            for name in others:
                await cluster[name].order("hold before Finish")
        answer = await lost(cluster, kind, asked, key)
        await cluster[asked].died()
        for name in others:
            await cluster[name].order("release")
        return answer

    async with Cluster(valkey, prefix, packages, tmp_path) as cluster:
        await under(fault, cluster, "done")


@asynchronous
async def test_killed_during_the_upload(valkey, prefix, packages, tmp_path):
    async def fault(cluster: Cluster, kind: str, asked: str, key: str) -> Told:
        if kind not in ("add", "update"):
            return await cluster.ask(kind, asked, key=key)
        await cluster[asked].order("kill during Upload")
        content = cluster.packages.old if kind == "add" else cluster.packages.new

        async def slowly():
            yield content[:1000]
            await asyncio.sleep(0.05)
            yield content[1000:]

        answer = await cluster.ask(kind, asked, key=key, content=slowly())
        assert answer.what == "nothing"
        await cluster[asked].died()
        return answer

    async with Cluster(valkey, prefix, packages, tmp_path) as cluster:
        await under(fault, cluster)  # asked again at once, it is begun with the killed node, and rolled back
