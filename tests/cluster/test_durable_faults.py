"""Durable checkpoints of real node processes that are killed."""

from __future__ import annotations

import os
import signal
from collections import Counter

import httpx
import psutil
import pytest
from tests.cluster.models import package
from tests.cluster.nodes import asynchronous, until
from tests.cluster.test_cluster_faults import Processes
from tests.cluster.test_durable_models import FLOW, Durable, exact

pytestmark = pytest.mark.faults
MODEL = "/v1/models/default/counts"


@asynchronous
async def test_the_leader_dies_and_then_every_worker_and_the_files_are_exact(valkey, prefix, tmp_path):
    source = tmp_path / "counts.py"
    source.write_text(FLOW.format(numbers=12_000, rate=1000, sink=f"ps.ndjson({f'{tmp_path}/out/'!r})"))
    store = f"checkpoints={tmp_path}/checkpoints"
    async with (
        Processes(valkey, prefix, "", store, "lease=3") as cluster,
        httpx.AsyncClient(trust_env=False, timeout=60) as client,
    ):

        async def view():
            try:
                answer = await client.get(f"{cluster.api(next(iter(cluster.nodes)))}{MODEL}", timeout=10)
            except httpx.HTTPError:
                return {}
            return answer.json() if answer.status_code == 200 else {}

        async def checkpoint():
            return ((await view()).get("checkpoint") or {}).get("number", 0)

        async def later_than(number):
            return await checkpoint() > number

        async def finished():
            seen = await view()
            assert seen.get("status") != "failed", seen["error"]
            return seen.get("status") == "finished"

        await cluster.add("a", "b", "c")
        api = cluster.api("a")
        added = await client.post(f"{api}/v1/models", content=await package(source))
        assert added.status_code == 201, added.text
        started = await client.post(f"{api}{MODEL}/online", json={"recovery": "passive", "executors": 2})
        assert started.status_code == 200, started.text
        await until(lambda: later_than(1))
        leader = next(n["id"] for n in (await client.get(f"{api}/v1/nodes")).json() if n["leader"])
        before = await checkpoint()
        await cluster.kill(leader)
        await until(lambda: later_than(before))
        before, killed = await checkpoint(), 0
        for node in cluster.nodes.values():
            for worker in psutil.Process(node.pid).children(recursive=True):
                if "penstock.worker" in worker.cmdline():
                    os.kill(worker.pid, signal.SIGKILL)
                    killed += 1
        assert killed >= 2
        await until(lambda: later_than(before), 60)
        await until(finished, 60)
        scene = Durable(None, tmp_path)
        await until(lambda: len(scene.shown()) >= 12_000)
        assert Counter(scene.shown()) == exact(12_000)
