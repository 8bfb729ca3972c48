"""The leader splits an executor whose input stays full, and merges when there is little to do; a hot key is named."""

from __future__ import annotations

import contextlib

import pytest
from tests.cluster.models import add, settled
from tests.cluster.nodes import Cluster, asynchronous, until

from penstock.settings import Balancing, RunSettings

pytestmark = pytest.mark.faults
SLOW = """
import time
import penstock as ps

def step(state, value):
    if value < {busy}:
        time.sleep(0.01)
    return state + 1, None

flow = ps.Flow("slow")
(
    flow.source("n", ps.sequence(10_000_000, rate={rate}))
    .key_by("key", lambda n: {key})
    .fold("work", 0, step)
    .sink("out", ps.collect())
)
"""
QUICK = Balancing(split_sustained=0.5, split_cooldown=1.0, merge_after=2.0, merge_below=0.9, interval=3600.0)


@contextlib.asynccontextmanager
async def running(valkey, prefix, tmp_path, **flow):
    path = tmp_path / "slow.py"
    path.write_text(SLOW.format(**flow))
    changes = {"lease": 8.0, "leader_lease": 8.0, "silence": 4.0, "rebalance": True, "balancing": QUICK}
    async with Cluster(valkey, prefix, checkpoints=(tmp_path / "checkpoints").as_uri(), **changes) as cluster:
        settings = RunSettings(metrics_interval=0.1, credit_bytes=8_000, batch_records=64)
        await cluster.add("a", "b", run_settings=settings, slots=8)
        agent = cluster.agents["a"]
        await add(agent, str(path))
        settled(await agent.online("slow", executors=1, recovery="passive"))
        try:
            yield agent
        except BaseException:
            for entry in await agent.log(None, 200):
                print(f"{entry.time:.3f} {entry.node} {entry.kind}: {entry.text}")
            raise


async def said(agent, kind):
    async def there():
        return next((entry.text for entry in await agent.log("slow", 300) if entry.kind == kind), None)

    return await until(there, 60)


@asynchronous
async def test_split_when_full_and_merged_when_idle(valkey, prefix, tmp_path):
    async with running(valkey, prefix, tmp_path, rate=300, key="n % 50", busy=2000) as agent:
        text = await said(agent, "executor.splitting")
        assert "key groups of executor 1.0 of default/slow go to a new executor 1.1" in text
        assert "% full" in text
        await said(agent, "executor.split")
        text = await said(agent, "executor.merged")
        assert "is merged into" in text

        async def gone():
            return len((await agent.model("slow")).executors) == 2

        await until(gone, 60)


@asynchronous
async def test_a_hot_key_is_named(valkey, prefix, tmp_path):
    async with running(valkey, prefix, tmp_path, rate=300, key="'hot' if n % 10 else n % 50", busy=10**9) as agent:
        text = await said(agent, "stage.unsplittable")
        assert "executor 0 cannot be split: key 'hot' has" in text
        assert {e.id for e in (await agent.model("slow")).executors} == {"0.0", "1.0"}
