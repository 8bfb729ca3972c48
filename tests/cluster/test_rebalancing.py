"""Rebalancing over real nodes and workers."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest
from tests.cluster.models import add, offline, online, settled
from tests.cluster.nodes import Cluster, asynchronous, until

from penstock.cluster.service import Conflict, NotFound, Pushed, Unavailable
from penstock.errors import ClusterError, UsageError
from penstock.settings import Balancing

QUICK = Balancing(half_life=0.5, window=5.0, interval=0.5, sustained=0.5)
PATIENT = {"lease": 6.0, "leader_lease": 6.0}
"""Nobody is lost here, however busy the machine is."""
LINES = ["alpha beta gamma delta " * 20] * 20


@contextlib.asynccontextmanager
async def pushing(agent, model, client=None):
    """Records arrive all the while; gives a list with the number of lines that were retained. With a `client` what was
    not acknowledged is sent again, and counted once."""
    retained, ended = [0], asyncio.Event()

    async def push():
        seq = 1
        while True:
            with contextlib.suppress(Unavailable):
                if isinstance(await agent.push(model, "lines", LINES, client, seq if client else None), Pushed):
                    retained[0] += len(LINES)
                    seq += 1
                    if ended.is_set():
                        break
            await asyncio.sleep(0.02)

    task = asyncio.create_task(push())
    try:
        yield retained
    finally:
        ended.set()
        async with asyncio.timeout(30):
            await task


async def proposed(agent, **options):
    view = await agent.rebalance(dry_run=True, **options)
    return view if view.moves and view.before.cut > 0.9 else None


@asynchronous
async def test_every_node_says_what_would_be_better_and_why_it_is_not_done(valkey, prefix, counting):
    async with Cluster(valkey, prefix, balancing=QUICK, **PATIENT) as cluster:
        await cluster.add("a", "b")
        a, b = cluster.agents["a"], cluster.agents["b"]
        await add(a, counting)
        assert (await a.rebalance(dry_run=True)).reason == "no model is online"
        running = await online(a, "counting", executors=1)
        assert {e.id: e.node for e in running.executors} == {"0.0": "a", "1.0": "b"}
        async with pushing(a, "counting"):
            for agent in (a, b):
                view = await until(lambda agent=agent: proposed(agent))
                (move,) = view.moves
                assert {move.source, move.target} == {"a", "b"}
                assert "recovery none" in move.obstacle
                assert (view.after.cut, view.strategy, view.dry_run) == (0.0, "adaptive", True)
                assert "-> 0%, 1 move" in view.reason
                assert view.gain > 0
            placed = await b.placement("counting")
            assert placed.now is not None
            assert placed.now.cut == 1.0
            assert [(e.producer, e.consumer, e.remote) for e in placed.heaviest] == [("0.0", "1.0", True)]
            assert placed.heaviest[0].bytes > 0
            assert placed.resources["0.0"].network > 0
            assert set(placed.stays) == {"0.0", "1.0"}
            nodes = await b.nodes()
            assert all(node.network > 0 for node in nodes)
            (executor, _) = (await b.model("counting")).executors
            assert executor.memory > 0
            assert executor.network > 0
            with pytest.raises(Conflict, match="would lose its state"):
                await b.rebalance()
            assert (await b.rebalance(dry_run=True, strategy="even")).moves == []
        with pytest.raises(NotFound):
            await a.rebalance(dry_run=True, model="nothing")
        with pytest.raises(UsageError, match="adaptive, balance"):
            await a.rebalance(dry_run=True, strategy="best")
        assert {e.node for e in (await a.model("counting")).executors} == {"a", "b"}
        await offline(a, "counting")


@pytest.mark.parametrize("recovery", ["passive", "active"])
@asynchronous
async def test_the_leader_brings_together_what_talks_and_nothing_is_lost_or_counted_twice(
    valkey, prefix, counting, tmp_path, recovery
):
    settings = msgspec.structs.replace(QUICK, interval=1.0)
    checkpoints = str(tmp_path / "checkpoints")
    async with Cluster(
        valkey, prefix, balancing=settings, rebalance=True, checkpoints=checkpoints, **PATIENT
    ) as cluster:
        await cluster.add("a", "b")
        a, b = cluster.agents["a"], cluster.agents["b"]
        await add(a, counting)
        running = settled(await a.online("counting", executors=1, recovery=recovery))
        assert {e.id: e.node for e in running.executors} == {"0.0": "a", "1.0": "b"}
        async with pushing(a, "counting", client="test") as pushed:
            await until(lambda: on_one_node(b))
            await until(lambda at=pushed[0]: pushed[0] > at + 1000)  # it goes on afterwards
        await until(lambda: is_counted(b, 20 * pushed[0]))
        (told,) = await entries(b, "placement.changed")
        assert told.text.startswith("cut 100% -> 0%, 1 move")
        assert len(await entries(b, "executor.moved")) == 1
        assert (await a.model("counting")).restarts == 0
        placed = await a.placement("counting")
        assert placed.now is not None
        assert placed.now.cut == 0.0
        assert set(placed.standbys) == {"0.0", "1.0"}
        await offline(a, "counting")


async def on_one_node(agent):
    return len({e.node for e in (await agent.model("counting")).executors}) == 1


async def is_counted(agent, number):
    found = await agent.lookup("counting", "count", "alpha")
    return found.found and found.value == number


def test_settings_that_make_no_sense_keep_a_node_from_starting(valkey, prefix):
    with pytest.raises(UsageError, match="the placement limit beta cannot be 0"):
        Cluster(valkey, prefix, balancing=Balancing(beta=0.0)).make("a")


@asynchronous
async def test_a_bottleneck_is_told_by_the_leader_and_shown_by_all(valkey, prefix, counting):
    """No worker may use so little CPU: whoever counts is over the bound."""
    tight = Balancing(half_life=0.5, window=5.0, sustained=0.5, gamma=1e-6)
    async with Cluster(valkey, prefix, balancing=tight, **PATIENT) as cluster:
        await cluster.add("a", "b")
        a, b = cluster.agents["a"], cluster.agents["b"]
        await add(a, counting)
        await online(a, "counting", executors=1)
        async with pushing(a, "counting"):
            told = await until(lambda: entries(b, "node.bottleneck"))
            assert "worker (group default)" in told[0].text
            assert "default/counting:0.0" in told[0].text  # the source that would have to be slower
            for agent in (a, b):
                await until(lambda agent=agent: bottlenecks(agent))
        await until(lambda: entries(a, "node.relieved"))
        with pytest.raises(ClusterError):
            await a.rebalance(model="nothing")


async def entries(agent, kind):
    return [entry for entry in await agent.log() if entry.kind == kind]


async def bottlenecks(agent):
    return [node.bottleneck for node in await agent.nodes() if node.bottleneck]
