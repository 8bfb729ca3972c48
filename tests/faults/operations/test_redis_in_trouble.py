"""Redis is restarted, emptied, or away while models run: flows go on in the same processes, the catalogue is safe."""

from __future__ import annotations

import asyncio
import os

import pytest
from tests.cluster.nodes import asynchronous
from tests.faults.operations.changes import KINDS, Told
from tests.faults.operations.cluster import Cluster
from tests.faults.operations.course import MODEL, under
from tests.faults.operations.rest import at_rest
from tests.faults.operations.server import Server, clock_shim
from tests.faults.operations.stream import Stream, workers

from penstock.cluster.transaction.records import State

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]
AWAY = float(os.environ.get("PENSTOCK_TEST_AWAY", "6"))
"""Seconds for which Redis is away: many leases (of 1.5 s)."""


async def set_up(cluster: Cluster) -> None:
    """A model that runs on all nodes."""
    for kind in KINDS[: KINDS.index("online") + 1]:
        answers = [await cluster.insist(kind, "a")]
        while answers[-1].what == "rolled back" and len(answers) < 3:  # a busy machine can cost a node its short lease
            await at_rest(cluster)
            answers.append(await cluster.insist(kind, "a"))
        assert answers[-1].what == "done", answers


async def restarted(server: Server) -> None:
    await server.kill()
    await server.start()


async def emptied(server: Server) -> None:
    await server.empty()


async def killed_for_long(server: Server) -> None:
    await server.kill()
    await asyncio.sleep(AWAY)
    await server.start()


async def silent_for_long(server: Server) -> None:
    server.suspend()
    try:
        await asyncio.sleep(AWAY)
    finally:
        server.resume()


@pytest.mark.parametrize(
    ("trouble", "persistent"),
    [
        (restarted, True),
        (restarted, False),
        (emptied, True),
        (killed_for_long, True),
        (killed_for_long, False),
        (silent_for_long, True),
    ],
    ids=lambda value: {True: "kept", False: "lost"}[value] if isinstance(value, bool) else value.__name__,
)
@asynchronous
async def test_flows_go_on_and_the_catalogue_is_there_again(prefix, packages, tmp_path, trouble, persistent):
    async with (
        Server(tmp_path / "redis", persistent=persistent) as server,
        Cluster(server.url, prefix, packages, tmp_path, warm=True) as cluster,
    ):
        await set_up(cluster)
        before = (await at_rest(cluster)).models[MODEL]
        running, stream = await workers(cluster, "a"), Stream(cluster, "b")
        await stream.keeps_flowing(0.2)
        incident = asyncio.create_task(trouble(server))
        while not incident.done():
            await stream.keeps_flowing(0.2)
        await incident
        await stream.keeps_flowing(1.0)
        assert (await at_rest(cluster)).models[MODEL] == before
        await stream.keeps_flowing(0.2)
        assert await workers(cluster, "c") == running
        for kind in ("offline", "delete", "add"):  # and everything works again
            answer = await cluster.insist(kind, "c")
            assert answer.what == "done", answer
        assert (await at_rest(cluster)).models[MODEL].state is State.OFFLINE


@asynchronous
async def test_a_node_is_admitted_late_after_redis_was_emptied(prefix, packages, tmp_path):
    """It has its lease and runs on, so what it runs is not started elsewhere."""
    async with Server(tmp_path / "redis") as server, Cluster(server.url, prefix, packages, tmp_path) as cluster:
        await set_up(cluster)
        before = (await at_rest(cluster)).models[MODEL]
        running, stream = await workers(cluster, "a"), Stream(cluster, "b")
        for late in "abc":
            await cluster[late].order("hold before Admit")
            await server.empty()
            await cluster[late].reached("before Admit")
            await stream.keeps_flowing(2.5)  # more than a lease: the leader may judge by then
            await cluster[late].order("release")
            assert (await at_rest(cluster)).models[MODEL] == before
            assert await workers(cluster, "a") == running
        await stream.keeps_flowing(0.2)


@asynchronous
async def test_two_clusters_share_a_redis_that_is_emptied(prefix, packages, tmp_path):
    (tmp_path / "other").mkdir()
    async with (
        Server(tmp_path / "redis") as server,
        Cluster(server.url, prefix, packages, tmp_path) as one,
        Cluster(server.url, f"{prefix}-other", packages, tmp_path / "other") as other,
    ):
        await set_up(one)
        assert (await other.insist("add", "a")).what == "done"
        running, stream = await workers(one, "a"), Stream(one, "b")
        before = [(await at_rest(cluster)).models[MODEL] for cluster in (one, other)]
        await stream.keeps_flowing(0.2)
        await server.empty()
        await stream.keeps_flowing(1.0)
        assert [(await at_rest(cluster)).models[MODEL] for cluster in (one, other)] == before
        assert await workers(one, "c") == running
        assert (await other.insist("delete", "b")).what == "done"
        await at_rest(other)
        assert (await at_rest(one)).models[MODEL] == before[0]
        await stream.keeps_flowing(0.2)


@pytest.mark.parametrize("moment", ["before SendVote", "before Finish", "before Apply"])
@asynchronous
async def test_redis_is_emptied_in_the_middle_of_an_operation(prefix, packages, tmp_path, moment):
    """It is done everywhere or nowhere; done, if any node had written down the decision."""
    async with Server(tmp_path / "redis") as server:

        async def fault(cluster: Cluster, kind: str, asked: str, key: str) -> Told:
            for name in "abc":
                await cluster[name].order(f"hold {moment}")
            asking = asyncio.create_task(cluster.ask(kind, asked, key=key))
            for name in "abc":
                await cluster[name].reached(moment)
            await server.empty()
            for name in "abc":
                await cluster[name].order("release")
            return await asking

        async with Cluster(server.url, prefix, packages, tmp_path) as cluster:
            await under(fault, cluster, None if moment == "before SendVote" else "done")


@pytest.mark.parametrize("seconds", [60, -60])
@asynchronous
async def test_the_clock_of_redis_is_moved(prefix, packages, tmp_path, seconds):
    shim = clock_shim(tmp_path)
    if shim is None:
        pytest.skip("there is no C compiler to make the server's clock movable; the simulator moves it as well")
    async with Server(tmp_path / "redis", clock=shim) as server:

        async def fault(cluster: Cluster, kind: str, asked: str, key: str) -> Told:
            slow = cluster.others(asked)[0]
            await cluster[slow].order("hold before SendVote")
            asking = asyncio.create_task(cluster.ask(kind, asked, key=key, timeout=30))
            await cluster[slow].reached("before SendVote")
            before = await server.time()
            server.set_clock(seconds)
            assert (await server.time() - before) * seconds > 0
            await cluster[slow].order("release")
            answer = await asking
            server.set_clock(0)
            return answer

        async with Cluster(server.url, prefix, packages, tmp_path) as cluster:
            await under(fault, cluster)
