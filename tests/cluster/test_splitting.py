"""Executors of a keyed step are split and merged on real nodes while records come; nodes and workers are killed."""

from __future__ import annotations

import os
import signal

import pytest
from tests.cluster.nodes import asynchronous, until
from tests.cluster.test_replicated_models import Lines, kinds, protected, running, view

from penstock.cluster.service import Conflict, NotFound

pytestmark = pytest.mark.faults
BOTH = pytest.mark.parametrize("recovery", ["active", "passive"])


async def said(cluster, kind, times=1):
    async def there():
        return (await kinds(cluster)).count(kind) >= times

    await until(there, 60)


async def executors(cluster):
    return {e.id for e in (await view(cluster)).executors}


async def over(cluster):
    """No shift is under way, and every executor is protected."""

    async def it():
        state = cluster.agents[next(iter(cluster.agents))]._view.models["default/counting"]
        plan = state.plan
        return plan is not None and all(r.shift is None for r in plan.routings.values()) and not state.shifts

    await until(it, 60)
    return await protected(cluster)


@BOTH
@asynchronous
async def test_an_executor_is_split(valkey, prefix, counting, tmp_path, recovery):
    async with running(valkey, prefix, counting, tmp_path, recovery, executors=1) as cluster:
        await protected(cluster)
        lines = Lines(cluster)
        async with lines.flowing():
            order = await cluster.agents["b"].split("counting", "count")
            assert (order.executor, order.groups) == ("1.0", 128)
            await said(cluster, "executor.split")
            await over(cluster)
        assert await executors(cluster) == {"0.0", "1.0", "1.1"}


@BOTH
@pytest.mark.parametrize("victim", ["0.0", "1.0", "1.1"])
@asynchronous
async def test_workers_are_killed_meanwhile(valkey, prefix, counting, tmp_path, recovery, victim):
    async with running(valkey, prefix, counting, tmp_path, recovery, executors=1) as cluster:
        await protected(cluster)
        lines = Lines(cluster)
        async with lines.flowing():
            await cluster.agents["b"].split("counting", "1.0")
            found = await until(lambda: pid(cluster, victim), 60)
            os.kill(found, signal.SIGKILL)
            await until(lambda: decided(cluster), 90)
            await over(cluster)
        assert await executors(cluster) >= {"0.0", "1.0"}


async def pid(cluster, name):
    """The worker of an executor, once it runs."""
    return next((e.pid for e in (await view(cluster)).executors if e.id == name and e.pid and e.state == "running"), 0)


async def decided(cluster):
    return {"executor.split", "split.failed"} & set(await kinds(cluster))


@BOTH
@pytest.mark.parametrize("checkpoint", ["of before the split", "of after it"])
@asynchronous
async def test_everything_is_lost_after_a_split(valkey, prefix, counting, tmp_path, recovery, checkpoint):
    """What is restored is handed out as the keys are divided now."""
    async with running(valkey, prefix, counting, tmp_path, recovery, executors=1) as cluster:
        await protected(cluster)
        lines = Lines(cluster)
        async with lines.flowing():
            pass
        await until(lambda: later(cluster), 60)
        await cluster.agents["b"].split("counting", "count")
        await said(cluster, "executor.split")
        if checkpoint == "of after it":
            await over(cluster)
            async with lines.flowing():
                pass
            await until(lambda: later(cluster), 60)
        found = [e for e in (await view(cluster)).executors if e.id in ("1.0", "1.1")]
        for one in {replica.pid for e in found for replica in e.replicas}:
            os.kill(one, signal.SIGKILL)
        await said(cluster, "model.restored")
        await over(cluster)
        await lines.counted()
        async with lines.flowing():
            pass
        assert await executors(cluster) == {"0.0", "1.0", "1.1"}


async def later(cluster, known={}):  # noqa: B006
    """Whether two more checkpoints are complete than when this was asked first."""
    checkpoint = (await view(cluster)).checkpoint
    number = 0 if checkpoint is None else checkpoint.number
    first = known.setdefault(cluster, number)
    if number < first + 2:
        return False
    del known[cluster]
    return True


@asynchronous
async def test_what_cannot_be_split(valkey, prefix, counting, tmp_path):
    async with running(valkey, prefix, counting, tmp_path, "passive", executors=1) as cluster:
        await protected(cluster)
        agent = cluster.agents["a"]
        with pytest.raises(Conflict, match="no keys by which its input could be divided"):
            await agent.split("counting", "lines")
        with pytest.raises(NotFound, match="no executor, stage or step 'nothing'"):
            await agent.split("counting", "nothing")
