"""One node says no: nobody does it, the caller is told who objected and why, and the next try succeeds."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from tests.cluster.nodes import asynchronous
from tests.faults.operations.changes import Told
from tests.faults.operations.cluster import Cluster
from tests.faults.operations.course import under

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]


def flip(path: Path) -> None:
    """Change one byte in the middle, in place."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0xFF]))


def digest_after(cluster: Cluster, kind: str) -> str:
    return cluster.packages.digests()[kind]


@asynchronous
async def test_the_package_is_damaged_on_the_disk_of_the_node_that_received_it(valkey, prefix, packages, tmp_path):
    async def fault(cluster: Cluster, kind: str, asked: str, key: str) -> Told:
        if kind not in ("add", "update"):
            return await cluster.ask(kind, asked, key=key)
        others = cluster.others(asked)
        for name in others:
            await cluster[name].order("hold before Prepare")
        await cluster[asked].order("note after SendVote")
        asking = asyncio.create_task(cluster.ask(kind, asked, key=key))
        await cluster[asked].reached("after SendVote")
        data = cluster[asked].data
        for path in (*data.glob("staging/*/*/package.whl"), *data.glob("uploads/*.whl")):
            flip(path)  # the second is often the same file as the first, by another name
            if path.stat().st_nlink > 1:
                break
        for name in others:
            await cluster[name].order("release")
        answer = await asking
        assert answer.what == "rolled back", answer
        assert answer.reasons.keys() <= set(others), answer
        assert all("corrupt" in reason for reason in answer.reasons.values()), answer.reasons
        return answer

    async with Cluster(valkey, prefix, packages, tmp_path) as cluster:
        answers = await under(fault, cluster)
        assert [answers[kind].what for kind in ("add", "update")] == ["rolled back"] * 2


@pytest.mark.parametrize("what", ["package.whl", "chain.py"])
@asynchronous
async def test_a_package_is_damaged_in_the_library_of_one_node(valkey, prefix, packages, tmp_path, what):
    """It is brought back from another node before anything is made of it."""

    async def fault(cluster: Cluster, kind: str, asked: str, key: str) -> Told:
        if kind == "online":
            victim = cluster.others(asked)[0]
            (path,) = (cluster[victim].data / "library" / digest_after(cluster, kind)).rglob(what)
            flip(path)
        return await cluster.ask(kind, asked, key=key)

    async with Cluster(valkey, prefix, packages, tmp_path) as cluster:
        await under(fault, cluster, "done")


@asynchronous
async def test_one_node_cannot_import_it(valkey, prefix, packages, tmp_path):
    async def fault(cluster: Cluster, kind: str, asked: str, key: str) -> Told:
        if kind not in ("add", "update", "online"):
            return await cluster.ask(kind, asked, key=key)
        victim = cluster.others(asked)[1]
        refuse = cluster[victim].here / "refuse"
        refuse.touch()
        # what was verified once is not imported again, unless its configuration is another one
        more = {"json": {"executors": 3, "config": {"step": 37}}} if kind == "online" else {}
        answer = await cluster.ask(kind, asked, key=key, **more)
        refuse.unlink()
        assert answer.what == "rolled back", answer
        assert answer.reasons.keys() == {victim}, answer
        assert "this node does not want it" in answer.reasons[victim], answer
        return answer

    async with Cluster(valkey, prefix, packages, tmp_path) as cluster:
        await under(fault, cluster)


@pytest.fixture
def small_disk(tmp_path):
    """The data directory of node `c`, on a file system of its own with little room."""
    folder = tmp_path / "data-c"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if done.returncode:
        reason = f"a small file system cannot be mounted here: {done.stderr.decode().strip()}"
        if os.environ.get("PENSTOCK_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Leave no room at all."""
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


@asynchronous
async def test_the_disk_of_one_node_is_full(valkey, prefix, packages, tmp_path, small_disk):
    async def fault(cluster: Cluster, kind: str, asked: str, key: str) -> Told:
        filler = small_disk / "filler"
        fill(filler)
        answer = await cluster.ask(kind, asked, key=key)
        filler.unlink()
        if asked == "c" and answer.what == "refused":  # it cannot even receive the package
            assert "room" in answer.body["detail"] or "full" in answer.body["detail"], answer
            return answer
        assert answer.what == "rolled back", answer
        assert answer.reasons.keys() == {"c"}, answer
        return answer

    async with Cluster(valkey, prefix, packages, tmp_path) as cluster:
        await under(fault, cluster)
