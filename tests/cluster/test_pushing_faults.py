"""A client pushes while workers and nodes are killed: it finishes by itself, over other nodes."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from tests.cluster.nodes import asynchronous, until
from tests.cluster.test_cluster_faults import Processes

from penstock.client import AsyncClient, ClientError

pytestmark = pytest.mark.faults

FLOW = """
import penstock as ps

flow = ps.Flow("counting")
flow.source("in", ps.push()).key_by("key", lambda n: n % 1000).count("count").sink("out", ps.null())
"""
STREAM = "counting/in"


class Pushing:
    """A push of the numbers from `first` on, in small pieces, while something happens."""

    def __init__(self, client, first, records=20_000, each=100):
        self.accepted = 0
        self.records = records
        self._task = asyncio.create_task(
            client.push_ndjson(STREAM, self._bodies(first, each), on_progress=self._progress, deadline=60)
        )

    async def _bodies(self, first, each):
        for start in range(first, first + self.records, each):
            yield b"".join(b"%d\n" % n for n in range(start, start + each))
            await asyncio.sleep(0.01)

    def _progress(self, result):
        self.accepted = result.accepted

    async def half(self):
        """Some of it is acknowledged."""
        await until(lambda: self.accepted >= self.records // 4 or self._task.done())
        assert not self._task.done()

    async def result(self):
        async with asyncio.timeout(120):
            return await self._task


async def started(cluster, client, tmp_path, recovery="none", executors=3):
    """The model, online on all nodes and, with replicas, protected."""
    path = tmp_path / "counting.py"
    path.write_text(FLOW)
    await client.add_model(path)
    await client.online("counting", executors=executors, recovery=recovery)
    return await until(lambda: running(client))


async def running(client):
    try:
        view = await client.model("counting")
    except ClientError:
        return None
    return view if view["status"] == "online" else None


async def counts(client):
    """Key -> count, of all keys."""
    found, cursor = {}, None
    while True:
        page = await client.list_state("counting", "count", limit=1000, cursor=cursor)
        found |= {item["key"]: item["value"] for item in page["items"]}
        if (cursor := page["cursor"]) is None:
            return found


async def counted(client, total):
    try:
        found = await counts(client)
    except ClientError:
        return None
    return found if sum(found.values()) >= total else None


@pytest.mark.parametrize("victim", ["its own node", "another node"])
@asynchronous
async def test_a_node_is_killed_and_the_client_finishes_by_another(valkey, prefix, tmp_path, victim):
    """With recovery none what was with the killed workers is lost, and told; nothing that comes afterwards is."""
    async with Processes(valkey, prefix) as cluster:
        await cluster.add("a", "b", "c")
        async with AsyncClient(cluster.api("a"), deadline=60) as client, AsyncClient(cluster.api("b")) as other:
            before = await started(cluster, other, tmp_path)
            name = "a" if victim == "its own node" else "c"
            assert name in {e["node"] for e in before["executors"] if e["id"].startswith("0.")}
            pushing = Pushing(client, 0)
            await pushing.half()
            await cluster.kill(name)
            result = await pushing.result()
            assert (result.accepted, result.through, result.pending) == (20_000, 20_000, 0)
            assert len(result.lanes) == 3
            assert result.resent > 0
            view = await until(lambda: running(other))
            assert view["restarts"] > 0
            assert view["lost"] + view["keys_lost"] > 0
            lost = 20_000 - sum((await counts(other)).values())
            assert lost > 0
            before = await settled(other)
            assert (await client.push(STREAM, range(5000))).accepted == 5000
            after = await until(lambda: counted(other, sum(before.values()) + 5000))
            assert {key: after[key] - before.get(key, 0) for key in after} == dict.fromkeys(range(1000), 5)


async def settled(client):
    """The counts once they stand still."""
    latest = None
    while (found := await counts(client)) != latest:
        latest = found
        await asyncio.sleep(0.5)
    return found


@pytest.mark.parametrize("recovery", ["active", "passive"])
@pytest.mark.parametrize("victim", ["source", "count", "node"])
@asynchronous
async def test_with_replicas_every_record_counts_once(valkey, prefix, tmp_path, recovery, victim):
    """The primary's worker, or its node, is killed with SIGKILL while 20,000 numbers are pushed."""
    store = (tmp_path / "store").as_uri()
    async with Processes(valkey, prefix, "", f"checkpoints={store}", "lease=4") as cluster:
        await cluster.add("a", "b", "c")
        async with AsyncClient(cluster.api("a"), deadline=60) as client:
            view = await started(cluster, client, tmp_path, recovery, executors=2)
            pushing = Pushing(client, 0)
            await pushing.half()
            where = {e["id"]: e for e in view["executors"]}
            if victim == "node":
                name = next(e["node"] for e in where.values() if e["node"] != "a")
                await cluster.kill(name)
            else:
                os.kill(where["0.1" if victim == "source" else "1.0"]["pid"], signal.SIGKILL)
            result = await pushing.result()
            assert (result.accepted, result.pending) == (20_000, 0)
            found = await until(lambda: counted(client, 20_000))
            assert found == dict.fromkeys(range(1000), 20)
            await client.push(STREAM, range(1000))
            assert await until(lambda: counted(client, 21_000)) == dict.fromkeys(range(1000), 21)


@asynchronous
async def test_an_executor_is_moved_and_the_client_follows(valkey, prefix, tmp_path):
    store = (tmp_path / "store").as_uri()
    async with Processes(valkey, prefix, "", f"checkpoints={store}", "lease=4") as cluster:
        await cluster.add("a", "b", "c")
        sent = []

        async def note(request):
            if request.method == "POST" and "penstock-lane" in request.headers:
                sent.append((request.headers["penstock-lane"], request.url.port))

        async with AsyncClient(cluster.api("a"), deadline=60) as client:
            client._http.event_hooks["request"].append(note)
            view = await started(cluster, client, tmp_path, "active", executors=2)
            home = next(e["node"] for e in view["executors"] if e["id"] == "0.1")
            target = next(name for name in "abc" if name != home)
            pushing = Pushing(client, 0, records=40_000)
            await pushing.half()
            assert (await client.move("counting", "0.1", target))["done"]
            moved = len(sent)
            result = await pushing.result()
            assert (result.accepted, result.pending) == (40_000, 0)
            assert ("1", cluster.ports[home]) in sent[:moved]
            pushes = 0

            async def direct():
                """Whether the lane's records go straight to its new node; at first they go through the old one."""
                nonlocal pushes
                pushes += 1
                await client.push(STREAM, range(10_000))  # a piece for each lane
                return ("1", cluster.ports[target]) in sent[-2:]

            await until(direct)
            each = 40 + 10 * pushes
            assert await until(lambda: counted(client, 1000 * each)) == dict.fromkeys(range(1000), each)


@asynchronous
async def test_a_node_that_only_falls_silent_is_gone_round(valkey, prefix, tmp_path):
    """SIGSTOP of the client's own node: nothing breaks, there is just no answer any more."""
    store = (tmp_path / "store").as_uri()
    async with Processes(valkey, prefix, "", f"checkpoints={store}", "lease=3") as cluster:
        await cluster.add("a", "b", "c")
        async with AsyncClient(cluster.api("a"), timeout=60) as client, AsyncClient(cluster.api("b")) as other:
            await started(cluster, other, tmp_path, "active", executors=3)
            pushing = Pushing(client, 0)
            await pushing.half()
            cluster.nodes["a"].send_signal(signal.SIGSTOP)
            result = await pushing.result()
            assert (result.accepted, result.pending) == (20_000, 0)
            assert result.resent > 0
            assert await until(lambda: counted(other, 20_000)) == dict.fromkeys(range(1000), 20)
