"""Push sources on a cluster: a lane for every executor, each with a memory of its own of what it has taken."""

from __future__ import annotations

import asyncio

import pytest
from tests.cluster.models import add, offline, online
from tests.cluster.nodes import Cluster, asynchronous, until

from penstock.cluster.service import Lane, Misdirected, NoRoom, NotFound, Pushed
from penstock.errors import ClusterError


async def counts(agent, word, number):
    found = await agent.lookup("counting", "count", word)
    return found.found and found.value == number


async def read(agent, total):
    """Records that each executor of the source has read, once they are so many."""
    found = {e.id: e.records_in for e in (await agent.model("counting")).executors if e.id.startswith("0.")}
    return found if sum(found.values()) == total else None


@asynchronous
async def test_every_executor_has_a_lane_and_every_node_takes_records_for_each(valkey, prefix, counting):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "b")
        agent, other = cluster.agents["a"], cluster.agents["b"]
        await add(agent, counting)
        view = await online(agent, "counting", executors=3)
        where = {e.id: e.node for e in view.executors}
        found = await other.addresses("counting", "lines")
        assert [(lane.lane, lane.executor, lane.node) for lane in found.lanes] == [
            (number, f"0.{number}", where[f"0.{number}"]) for number in range(3)
        ]
        assert found.nodes == {"a": "http://127.0.0.1/a", "b": "http://127.0.0.1/b"}
        assert {lane.url for lane in found.lanes} == set(found.nodes.values())
        for number in range(3):
            for node in (agent, other):  # a repeat, over another node: taken once
                answer = await node.push("counting", "lines", [f"x w{number}"], "me", 1, Lane(number, found.cluster))
                assert answer == Pushed(1)
        assert await until(lambda: read(agent, 3)) == {"0.0": 1, "0.1": 1, "0.2": 1}
        await until(lambda: counts(agent, "x", 3))
        await agent.push("counting", "lines", ["x"], "me", 2, Lane(4))
        assert await until(lambda: read(agent, 4)) == {"0.0": 1, "0.1": 2, "0.2": 1}
        with pytest.raises(Misdirected):
            await agent.push("counting", "lines", ["x"], "me", 3, Lane(0, "another"))
        with pytest.raises(NotFound):
            await agent.addresses("counting", "nothing")
        await offline(agent, "counting")
        with pytest.raises(ClusterError, match="offline"):
            await agent.addresses("counting", "lines")


@asynchronous
async def test_repeats_that_name_no_lane_meet(valkey, prefix, counting):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "b")
        await add(cluster.agents["a"], counting)
        await online(cluster.agents["a"], "counting", executors=2)
        for client in range(12):
            for agent in cluster.agents.values():
                assert await agent.push("counting", "lines", ["x"], f"client-{client}", 7) == Pushed(1)
        found = await until(lambda: read(cluster.agents["a"], 12))
        assert min(found.values()) > 0  # clients are spread
        await until(lambda: counts(cluster.agents["b"], "x", 12))


@asynchronous
async def test_records_without_a_number_go_where_there_is_room(valkey, prefix, tmp_path):
    path = tmp_path / "counting.py"
    path.write_text(
        "import time\nimport penstock as ps\nflow = ps.Flow('counting')\n"
        "flow.source('lines', ps.push(max_bytes=2000)).map('wait', lambda r: time.sleep(0.2) or r)"
        ".key_by('k', lambda r: 'x').count('count').sink('out', ps.null())\n"
    )
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        await add(agent, str(path))
        await online(agent, "counting", executors=2)
        answers = await asyncio.gather(*(agent.push("counting", "lines", ["z" * 900]) for _ in range(12)))
        taken = answers.count(Pushed(1))
        assert NoRoom(0.1) in answers
        found = await until(lambda: read(agent, taken))
        assert min(found.values()) > 0
        await until(lambda: counts(agent, "x", taken))
