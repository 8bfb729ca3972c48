"""One node alone does not reach Redis: it stops what runs on it before others take over, and returns by itself."""

from __future__ import annotations

import asyncio

import psutil
import pytest
from tests.cluster.nodes import asynchronous, until
from tests.faults.operations.changes import KINDS, Told
from tests.faults.operations.cluster import PATIENCE, Cluster
from tests.faults.operations.course import under
from tests.faults.operations.rest import at_rest
from tests.faults.operations.server import Server, Way

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]


@pytest.mark.parametrize("silently", [False, True], ids=["refused", "silent"])
@asynchronous
async def test_its_executors_stop_before_others_take_over(prefix, packages, tmp_path, silently):
    async with Server(tmp_path / "redis") as server, Way(server.port) as way:
        cluster = Cluster(server.url, prefix, packages, tmp_path)
        cluster.urls["c"] = way.url
        async with cluster:
            for kind in KINDS[: KINDS.index("online") + 1]:
                assert (await cluster.insist(kind, "a")).what == "done"
            await at_rest(cluster)
            old = [psutil.Process(pid) for pid in await on_node(cluster, "c")]
            assert old
            incarnation = (await cluster.look()).store.members["c"]
            await way.cut(silently=silently)
            await until(lambda: taken_over(cluster, old), PATIENCE)
            await way.mend()
            store = await at_rest(cluster)
            assert store.members["c"] > incarnation
            for kind in ("offline", "online"):
                assert (await cluster.insist(kind, "c")).what == "done"
            await at_rest(cluster)
            assert await on_node(cluster, "c")


async def on_node(cluster: Cluster, node: str) -> set[int]:
    """The processes of a node in which executors of the model run."""
    found = (await cluster.get("a", "/v1/models/default/chain")).json()
    return {executor["pid"] for executor in found["executors"] if executor["node"] == node and executor["pid"]}


async def taken_over(cluster: Cluster, old: list[psutil.Process]) -> bool:
    """Whether others run it now. By then, what the node ran has surely ended: never do both run."""
    found = (await cluster.get("a", "/v1/models/default/chain")).json()
    by = {executor["node"] for executor in found["executors"]}
    if "c" in by:
        return False
    alive = [process.pid for process in old if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not alive, f"placed on {by}, while {alive} still run on c"
    return found["status"] == "online"


@asynchronous
async def test_cut_off_during_an_operation(prefix, packages, tmp_path):
    async with Server(tmp_path / "redis") as server, Way(server.port) as way:

        async def fault(cluster: Cluster, kind: str, asked: str, key: str) -> Told:
            if asked == "c":
                return await cluster.ask(kind, asked, key=key)
            await cluster["c"].order("hold before SendVote")
            asking = asyncio.create_task(cluster.ask(kind, asked, key=key))
            await cluster["c"].reached("before SendVote")
            await way.cut(silently=False)
            answer = await asking
            assert answer.what == "rolled back", answer
            assert answer.reasons == {"c": "was lost"}, answer
            await cluster["c"].order("release")
            await way.mend()
            return answer

        cluster = Cluster(server.url, prefix, packages, tmp_path)
        cluster.urls["c"] = way.url
        async with cluster:
            await under(fault, cluster)


@asynchronous
async def test_the_asked_node_is_cut_off(prefix, packages, tmp_path):
    """Its caller waits until it finds Redis again, and then is told the truth."""
    async with Server(tmp_path / "redis") as server, Way(server.port) as way:

        async def fault(cluster: Cluster, kind: str, asked: str, key: str) -> Told:
            await cluster["c"].order("hold after Begin")
            asking = asyncio.create_task(cluster.ask(kind, "c", key=key))
            await cluster["c"].reached("after Begin")
            await way.cut(silently=True)
            await cluster["c"].order("release")
            await until(lambda: nothing_open(cluster), PATIENCE)
            await way.mend()
            return await asking

        cluster = Cluster(server.url, prefix, packages, tmp_path)
        cluster.urls["c"] = way.url
        async with cluster:
            await under(fault, cluster)


async def nothing_open(cluster: Cluster) -> bool:
    return not (await cluster.look()).store.open()
