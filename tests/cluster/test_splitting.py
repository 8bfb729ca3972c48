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
