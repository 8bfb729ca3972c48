"""Models with replicas when whole nodes are killed or stand still, and when Redis loses its memory."""

from __future__ import annotations

import asyncio
import os
import signal

import psutil
import pytest
from redis import Redis
from tests.cluster.nodes import asynchronous, until
from tests.cluster.test_cluster_faults import Processes
from tests.cluster.test_pushing_faults import STREAM, Pushing, counted, running, started

from penstock.client import AsyncClient

pytestmark = pytest.mark.faults
LEASE = 4


def cluster_of(valkey, prefix, tmp_path):
    return Processes(valkey, prefix, "", f"checkpoints={(tmp_path / 'store').as_uri()}", f"lease={LEASE}")


async def exact(client, total):
    """Every number of `Pushing` was counted once."""
    found = await until(lambda: counted(client, total))
    assert found == dict.fromkeys(range(1000), total // 1000)


async def kinds(client):
    return [entry["kind"] for entry in await client.log("counting", limit=200)]


async def leader(client):
    async def led():
        return next((node["id"] for node in await client.nodes() if node["leader"]), None)

    return await until(led)


@pytest.mark.parametrize("recovery", ["active", "passive"])
@asynchronous
async def test_the_leaders_node_is_killed_with_all_that_runs_on_it(valkey, prefix, tmp_path, recovery):
    async with cluster_of(valkey, prefix, tmp_path) as cluster:
        await cluster.add("a", "b", "c")
        async with AsyncClient(cluster.api("a"), deadline=60) as any_node:
            leads = await leader(any_node)
        other = next(name for name in "abc" if name != leads)
        async with AsyncClient(cluster.api(other), deadline=60) as client:
            view = await started(cluster, client, tmp_path, recovery, executors=3)
            assert leads in {e["node"] for e in view["executors"]}
            pushing = Pushing(client, 0)
            await pushing.half()
            await cluster.kill(leads)
            result = await pushing.result()
            assert (result.accepted, result.pending) == (20_000, 0)
            await exact(client, 20_000)
            view = await until(lambda: running(client))
            assert view["promotions"] > 0
            assert (view["restarts"], view["restores"]) == (0, 0)
            assert leads not in {r["node"] for e in view["executors"] for r in e["replicas"]}


@pytest.mark.parametrize("recovery", ["active", "passive"])
@asynchronous
async def test_a_node_that_stood_still_wakes_up_and_changes_nothing(valkey, prefix, tmp_path, recovery):
    """Agent and workers are stopped for longer than the lease; others take over; then they go on as if nothing had
    happened, with primaries that have been replaced."""
    async with cluster_of(valkey, prefix, tmp_path) as cluster:
        await cluster.add("a", "b", "c")
        async with AsyncClient(cluster.api("a"), deadline=60) as client:
            leads = await leader(client)
            view = await started(cluster, client, tmp_path, recovery, executors=3)
            name = next(n for n in ("b", "c") if n != leads and n in {e["node"] for e in view["executors"]})
            pushing = Pushing(client, 0)
            await pushing.half()
            agent = psutil.Process(cluster.nodes[name].pid)
            stopped = [*agent.children(recursive=True), agent]
            for process in stopped:
                process.suspend()
            try:

                async def taken_over():
                    now = await client.model("counting")
                    return name not in {e["node"] for e in now["executors"]}

                await until(taken_over)
                result = await pushing.result()
                assert (result.accepted, result.pending) == (20_000, 0)
            finally:
                for process in stopped:
                    if process.is_running():
                        process.resume()
            await exact(client, 20_000)
            again = Pushing(client, 20_000)
            assert (await again.result()).accepted == 20_000
            await exact(client, 40_000)
            view = await until(lambda: running(client))
            assert view["restores"] == 0

            async def back():
                return all(node["live"] for node in await client.nodes()) and len(await client.nodes()) == 3

            await until(back)


@asynchronous
async def test_redis_loses_its_memory_and_a_primary_dies_afterwards(valkey, prefix, tmp_path):
    redis = Redis.from_url(valkey)
    async with cluster_of(valkey, prefix, tmp_path) as cluster:
        await cluster.add("a", "b", "c")
        async with AsyncClient(cluster.api("a"), deadline=60) as client:
            before = await started(cluster, client, tmp_path, "active", executors=2)
            pushing = Pushing(client, 0, records=40_000)
            await pushing.half()
            redis.delete(*redis.scan_iter("{" + prefix + "}:*", count=1000))

            async def brought_back():
                return "plan.restored" in await kinds(client) and await running(client)

            view = await until(brought_back)
            pids = {r["name"]: r["pid"] for e in view["executors"] for r in e["replicas"]}
            assert pids == {r["name"]: r["pid"] for e in before["executors"] for r in e["replicas"]}
            victim = next(e for e in view["executors"] if e["id"] == "1.0")
            os.kill(victim["pid"], signal.SIGKILL)
            result = await pushing.result()
            assert (result.accepted, result.pending) == (40_000, 0)
            await exact(client, 40_000)
            view = await until(lambda: running(client))
            assert view["promotions"] >= 1
            assert view["restores"] == 0
            await client.push(STREAM, range(1000))
            await asyncio.sleep(0)
            await exact(client, 41_000)
    redis.close()
