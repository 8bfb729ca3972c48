"""Live updates of a model on real node processes while the leader is killed."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from tests.cluster.models import package
from tests.cluster.nodes import asynchronous, until
from tests.cluster.test_cluster_faults import Processes
from tests.cluster.test_live_updates import ONE, TWO, Updated

pytestmark = pytest.mark.faults
MODEL = "/v1/models/default/counts"
PHASES = ("starting", "shadow", "handing over", "trial", "settling")


@pytest.mark.parametrize("phase", ["shadow", "handing over", "trial"])
@asynchronous
async def test_the_leader_is_killed_in_the_middle(valkey, prefix, tmp_path, phase):
    scene = Updated(None, tmp_path)
    store = f"checkpoints={tmp_path}/checkpoints"
    async with (
        Processes(valkey, prefix, "", store, "lease=4") as cluster,
        httpx.AsyncClient(trust_env=False, timeout=180) as client,
    ):
        await cluster.add("a", "b", "c")
        api = cluster.api("a")
        added = await client.post(f"{api}/v1/models", content=await package(scene.source("1", ONE)))
        assert added.status_code == 201, added.text
        started = await client.post(f"{api}{MODEL}/online", json={"recovery": "passive", "executors": 2})
        assert started.status_code == 200, started.text
        leader = next(n["id"] for n in (await client.get(f"{api}/v1/nodes")).json() if n["leader"])
        asked = cluster.api(next(name for name in "abc" if name != leader))

        async def view():
            try:
                answer = await client.get(f"{asked}{MODEL}", timeout=10)
            except httpx.HTTPError:
                return None
            return answer.json() if answer.status_code == 200 else None

        async def so_far():
            seen = (await view() or {}).get("update")
            assert seen is None or seen["phase"] != "failed", seen
            return seen is not None and PHASES.index(seen["phase"]) >= PHASES.index(phase)

        async def durable():
            return ((await view() or {}).get("checkpoint") or {}).get("number", 0) > 0

        await until(durable)
        content = await package(scene.source("2", TWO))
        update = asyncio.create_task(client.put(f"{asked}{MODEL}?live=true", content=content))
        await until(so_far)
        await cluster.kill(leader)
        answer = await update
        assert answer.status_code in (200, 503), answer.text

        async def over():
            seen = await view()
            failed = seen is not None and seen["update"] is not None and seen["update"]["phase"] == "failed"
            done = seen is not None and seen["version"] == ("1" if failed else "2")
            return seen if done and (failed or seen["update"] is None) and seen["status"] == "online" else None

        seen = await until(over, 90)
        await scene.more(seen["version"])
        scene.exact(*["1", "2"][: int(seen["version"])])
        assert seen["version"] == "2", seen["update"]
