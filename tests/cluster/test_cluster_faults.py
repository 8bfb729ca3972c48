"""Real node processes that are killed and paused, and a Redis that goes away and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from tests.cluster.models import add, offline, online, package
from tests.cluster.nodes import Cluster, asynchronous, settings, until

from penstock.cluster.bus import Bus
from penstock.cluster.embedded import EmbeddedValkey
from penstock.cluster.service import Pushed
from penstock.errors import ClusterError

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parents[2]


class Processes:
    """Node processes by name."""

    def __init__(self, url, prefix, *more):
        self.url, self.prefix, self.more = url, prefix, more
        self.nodes, self.ports = {}, {}

    async def add(self, *names):
        for name in names:
            self.nodes[name] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.cluster.node_process", self.url, name, self.prefix, *self.more,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
            )  # fmt: skip
        for name in names:
            async with asyncio.timeout(60):
                line = await self.nodes[name].stdout.readline()
            assert line.startswith(b"ready"), line
            self.ports[name] = int(line.split()[1])

    def api(self, name):
        return f"http://127.0.0.1:{self.ports[name]}"

    async def kill(self, name):
        """SIGKILL a node; its workers, to be watched."""
        workers = psutil.Process(self.nodes[name].pid).children(recursive=True)
        self.nodes[name].kill()
        await self.nodes[name].wait()
        del self.nodes[name]
        return workers

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        for process in self.nodes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.stdin.close()
        for process in self.nodes.values():
            try:
                async with asyncio.timeout(20):
                    assert await process.wait() == 0
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


def gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=0)
    return not alive


async def view(client, api, name="counting"):
    try:
        response = await client.get(f"{api}/v1/models/default/{name}", timeout=10)
    except httpx.HTTPError:
        return None
    return response.json() if response.status_code == 200 else None


async def online_on(client, api, nodes):
    found = await view(client, api)
    good = found and found["status"] == "online" and {e["node"] for e in found["executors"]} <= nodes
    return found if good else None


async def count(client, api, word):
    response = await client.get(f"{api}/v1/state/default/counting/count/{word}")
    return response.json()["value"] if response.status_code == 200 else None


async def counts_to(client, api, word, number):
    return await count(client, api, word) == number


async def push(client, api, text):
    response = await client.post(f"{api}/v1/streams/default/counting/lines", json=[text])
    return response.status_code == 200


@asynchronous
async def test_a_killed_node_takes_its_workers_along_and_others_take_over(valkey, prefix, counting):
    async with Processes(valkey, prefix) as cluster, httpx.AsyncClient(trust_env=False, timeout=60) as client:
        await cluster.add("a", "b", "c")
        api = cluster.api("a")
        assert (await client.post(f"{api}/v1/models", content=await package(counting))).status_code == 201
        started = await client.post(f"{api}/v1/models/default/counting/online", json={"executors": 3})
        assert started.status_code == 200, started.text
        assert {e["node"] for e in started.json()["executors"]} == {"a", "b", "c"}
        leader = next(n["id"] for n in (await client.get(f"{api}/v1/nodes")).json() if n["leader"])
        workers = await cluster.kill(leader)  # also a leader that is killed is replaced
        assert workers
        await until(lambda: gone(workers))
        left = {"a", "b", "c"} - {leader}
        api = cluster.api(min(left))
        found = await until(lambda: online_on(client, api, left))
        assert found["restarts"] >= 1
        await until(lambda: push(client, api, "x y x"))
        for name in left:
            await until(lambda name=name: counts_to(client, cluster.api(name), "x", 2))
        await until(lambda: struck_off(client, api, leader))
        kinds = [e["kind"] for e in (await client.get(f"{api}/v1/log?limit=1000")).json()]
        assert "node.lost" in kinds
        assert kinds.count("leader.elected") == 2
        await cluster.add(leader)
        nodes = {n["id"]: n for n in (await client.get(f"{api}/v1/nodes")).json()}
        assert nodes[leader]["incarnation"] == 2


async def struck_off(client, api, name):
    return name not in {n["id"] for n in (await client.get(f"{api}/v1/nodes")).json()}


@asynchronous
async def test_a_paused_node_is_replaced_and_comes_back_with_a_new_incarnation(valkey, prefix, counting):
    async with Processes(valkey, prefix) as cluster, httpx.AsyncClient(trust_env=False, timeout=60) as client:
        await cluster.add("a", "b")
        api = cluster.api("a")
        assert (await client.post(f"{api}/v1/models", content=await package(counting))).status_code == 201
        await client.post(f"{api}/v1/models/default/counting/online", json={"executors": 2})
        children = psutil.Process(cluster.nodes["b"].pid).children(recursive=True)
        old = [child for child in children if "penstock.worker" in child.cmdline()]
        cluster.nodes["b"].send_signal(signal.SIGSTOP)
        await until(lambda: online_on(client, api, {"a"}))
        cluster.nodes["b"].send_signal(signal.SIGCONT)
        await until(lambda: gone(old))  # what it ran is not its any more
        await until(lambda: rejoined(client, api, "b", 2))
        await until(lambda: push(client, api, "x x"))
        await until(lambda: counts_to(client, cluster.api("b"), "x", 2))
        assert (await online_on(client, api, {"a"})) is not None


async def rejoined(client, api, name, incarnation):
    nodes = {n["id"]: n for n in (await client.get(f"{api}/v1/nodes")).json()}
    return name in nodes and nodes[name]["incarnation"] == incarnation and nodes[name]["live"]


def server_of(embedded):
    (server,) = psutil.Process(embedded._guard.pid).children()
    return server


@asynchronous
async def test_redis_away_for_many_leases_stops_nothing(prefix, counting):
    async with EmbeddedValkey() as embedded, Cluster(embedded.url, prefix) as cluster:
        await cluster.add("a", "b")
        agent = cluster.agents["a"]
        await add(agent, counting)
        before = await online(agent, "counting", executors=2)
        server = server_of(embedded)
        server.suspend()
        try:
            for turn in range(1, 9):  # the data plane needs no Redis, for as long as nobody else can reach it either
                assert await agent.push("counting", "lines", ["x y"]) == Pushed(1)
                await until(lambda turn=turn: counted(agent, "x", turn))
                await asyncio.sleep(0.75)
            assert (await agent.model("counting")).name == "default/counting"  # from memory
        finally:
            server.resume()
        for node in cluster.agents.values():
            await until(lambda node=node: is_ready(node))
        after = await agent.model("counting")
        assert (after.status, after.restarts) == ("online", 0)
        assert {e.pid for e in after.executors} == {e.pid for e in before.executors}
        assert {n.id: n.incarnation for n in await agent.nodes()} == {"a": 1, "b": 1}
        assert await agent.push("counting", "lines", ["x"]) == Pushed(1)
        await until(lambda: counted(agent, "x", 9))
        assert await offline(agent, "counting")


async def is_ready(agent):
    return not await agent.ready()


async def counted(agent, word, number):
    return (await agent.lookup("counting", "count", word)).value == number


@asynchronous
async def test_a_short_pause_of_redis_stops_nothing(prefix, counting):
    async with EmbeddedValkey() as embedded, Cluster(embedded.url, prefix, lease=6.0, leader_lease=6.0) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        await add(agent, counting)
        before = await online(agent, "counting")
        server = server_of(embedded)
        server.suspend()
        try:
            assert await agent.push("counting", "lines", ["x"]) == Pushed(1)  # the data plane needs no Redis
            await until(lambda: counted(agent, "x", 1))
        finally:
            server.resume()
        await until(lambda: is_ready(agent))
        after = await agent.model("counting")
        assert (after.status, after.restarts) == ("online", 0)
        assert {e.pid for e in after.executors} == {e.pid for e in before.executors}
        assert (await agent.health()).incarnation == 1


@asynchronous
async def test_no_bell_rings_and_everything_still_happens(valkey, prefix, counting, monkeypatch):
    async def deaf(self):
        await asyncio.Event().wait()

    monkeypatch.setattr(Bus, "_listen", deaf)
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "b")
        await add(cluster.agents["a"], counting)
        assert (await online(cluster.agents["b"], "counting", executors=2)).status == "online"
        assert (await offline(cluster.agents["a"], "counting")).status == "offline"


@asynchronous
async def test_two_clusters_share_a_redis_by_prefix(valkey, prefix, counting):
    async with Cluster(valkey, prefix) as one, Cluster(valkey, prefix + "-other") as two:
        await one.add("a")
        await two.add("a")
        await add(one.agents["a"], counting)
        assert [m.name for m in await one.agents["a"].models()] == ["default/counting"]
        assert await two.agents["a"].models() == []
        assert (await two.agents["a"].health()).leader


@asynchronous
async def test_a_node_that_cannot_start_leaves_nothing(valkey, prefix):
    cluster = Cluster(valkey, prefix)
    with pytest.raises(ClusterError, match="no Redis answers"):
        await cluster.make("a", url="redis://127.0.0.1:1/0").start()
    async with cluster:
        await cluster.add("a")
        twin = cluster.make("a", settings=settings(prefix, lease=0.5))
        with pytest.raises(ClusterError, match="another process named 'a'"):
            await twin.start()
        assert await is_ready(cluster.agents["a"])


@asynchronous
async def test_stopped_while_it_starts_it_leaves_nothing(valkey, prefix):
    cluster = Cluster(valkey, prefix)
    for delay in (0.0, 0.005, 0.02, 0.1, 0.3):
        agent = cluster.make("a")
        start = asyncio.create_task(agent.start())
        await asyncio.sleep(delay)
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        await agent.stop()


@asynchronous
async def test_workers_killed_at_random_never_stop_the_model_for_good(valkey, prefix, counting, monkeypatch):
    monkeypatch.setattr("penstock.cluster.reconcile.FAILURES_ALLOWED", 50)
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "b")
        agent = cluster.agents["a"]
        await add(agent, counting)
        await online(agent, "counting", executors=2)
        for turn in range(4):
            victims = await until(lambda: processes(agent))
            with contextlib.suppress(ProcessLookupError):
                os.kill(victims[turn % len(victims)], signal.SIGKILL)
            await asyncio.sleep(0.05 * turn)
        await until(lambda: steady(agent))
        await agent.push("counting", "lines", ["end end"])
        await until(lambda: counted(agent, "end", 2))


async def processes(agent):
    return sorted({e.pid for e in (await agent.model("counting")).executors} - {0})


async def steady(agent):
    found = await agent.model("counting")
    if found.status != "online":
        return None
    return found if all(e.pid and psutil.pid_exists(e.pid) for e in found.executors) else None


@asynchronous
async def test_records_that_were_with_a_dead_worker_are_counted_and_shown(valkey, prefix, tmp_path):
    path = tmp_path / "busy.py"
    path.write_text(
        "import time\nimport penstock as ps\n"
        "flow = ps.Flow('busy')\n"
        "flow.source('s', ps.sequence(rate=5000)).key_by('k', lambda n: n % 50)"
        ".count('count').map('slow', lambda r: time.sleep(0.001) or r).sink('out', ps.null())\n"
    )
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "b")
        agent = cluster.agents["a"]
        await add(agent, str(path))
        view = await online(agent, "busy")
        where = {e.id: e for e in view.executors}
        assert where["0.0"].node != where["1.0"].node
        await until(lambda: queued(agent))
        os.kill(where["1.0"].pid, signal.SIGKILL)
        lossy = await until(lambda: lost_some(agent))
        assert lossy.restarts == 1
        await offline(agent, "busy")


async def queued(agent):
    return any(c.queue_bytes > 0 and c.records > 500 for c in (await agent.placement("busy")).channels)


async def lost_some(agent):
    found = await agent.model("busy")
    return found if found.lost > 0 and found.status == "online" else None
