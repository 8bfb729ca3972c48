"""A node that takes part in an operation is killed or paused: it is done everywhere or nowhere."""

from __future__ import annotations

import asyncio
import signal

import pytest
from tests.cluster.nodes import asynchronous, until
from tests.faults.operations.changes import Told
from tests.faults.operations.cluster import PATIENCE, Cluster
from tests.faults.operations.course import under

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]


def victim_of(cluster: Cluster, asked: str) -> str:
    """Some node that was not asked: each one in turn."""
    return cluster.others(asked)[ord(asked) % 2]


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("before SendVote", "rolled back"),
        ("after SendVote", None),  # its vote counts, if the others were quick; a lost lease may come first
        ("before Apply", "done"),
        ("after Apply", "done"),
        ("after Decided", "done"),
    ],
)
@asynchronous
async def test_killed(valkey, prefix, packages, tmp_path, moment, expected):
    async def fault(cluster: Cluster, kind: str, asked: str, key: str) -> Told:
        victim = victim_of(cluster, asked)
        await cluster[victim].order(f"kill {moment}")
        if moment == "after SendVote":  # so that its vote is not the last one
            await cluster[asked].order("hold before SendVote")
        asking = asyncio.create_task(cluster.ask(kind, asked, key=key))
        await cluster[victim].died()
        if moment == "after SendVote":
            await cluster[asked].order("release")
        answer = await asking
        assert answer.what in ("done", "rolled back"), f"{kind}: {asked} lives, and says {answer}"
        if answer.what == "rolled back":
            assert answer.reasons == {victim: "was lost"}, answer
        return answer

    async with Cluster(valkey, prefix, packages, tmp_path) as cluster:
        await under(fault, cluster, expected)


@asynchronous
async def test_paused_beyond_the_deadline(valkey, prefix, packages, tmp_path):
    async def fault(cluster: Cluster, kind: str, asked: str, key: str) -> Told:
        victim = victim_of(cluster, asked)
        await cluster[victim].order("stop before SendVote")
        answer = await cluster.ask(kind, asked, key=key, timeout=1.0)
        await cluster[victim].reached("before SendVote")
        cluster[victim].signal(signal.SIGCONT)
        assert answer.what == "rolled back"
        assert victim in answer.reasons or "too long" in str(answer.reasons), answer  # another one may be slow as well
        return answer

    async with Cluster(valkey, prefix, packages, tmp_path, warm=True) as cluster:
        await under(fault, cluster, "rolled back")


@asynchronous
async def test_paused_beyond_its_lease_before_it_applies(valkey, prefix, packages, tmp_path):
    async def fault(cluster: Cluster, kind: str, asked: str, key: str) -> Told:
        victim = victim_of(cluster, asked)
        await cluster[victim].order("stop before Apply")
        answer = await cluster.ask(kind, asked, key=key)  # done, once the paused one is taken for dead
        await cluster[victim].reached("before Apply")
        assert answer.what == "done", answer
        await until(lambda: struck_off(cluster, victim), PATIENCE)
        cluster[victim].signal(signal.SIGCONT)
        return answer

    async with Cluster(valkey, prefix, packages, tmp_path) as cluster:
        await under(fault, cluster, "done")


async def struck_off(cluster: Cluster, name: str) -> bool:
    return name not in (await cluster.look()).store.members
