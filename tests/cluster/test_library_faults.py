"""The library in processes that are killed or may use little memory."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
from tests.cluster.packages import assert_consistent, opened, packed, several

from penstock.cluster.disk import sha256
from penstock.model.package import open_package

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Some small packages."""
    return several(tmp_path_factory.mktemp("wheels"))


# ---- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_stays_bounded_with_a_big_package(tmp_path):
    code = """
        import asyncio, re, sys
        from pathlib import Path
        from penstock.cluster.disk import sha256
        from penstock.cluster.library import Library

        class Node:
            def __init__(self, library):
                self.name, self.read = "n1", library.read

        def peak():  # getrusage would tell the peak of the parent, before exec
            return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

        async def main(root, wheel):
            one, two = Library(root / "1"), Library(root / "2")
            await one.open()
            await two.open()
            before = peak()
            def pieces():
                with wheel.open("rb") as file:
                    while piece := file.read(2**16):
                        yield piece
            async def chunks():
                for piece in pieces():
                    yield piece
            digest = (await one.receive(chunks(), limit=2**30)).digest
            await one.stage("t", digest, [])
            await one.drop_upload(digest)
            await one.adopt("t", digest)
            await two.obtain(digest, [Node(one)])
            assert await two.check([digest]) == []
            print(peak() - before)

        asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
        """
    wheel = packed(tmp_path, "big", noise=100_000_000)
    assert wheel.stat().st_size > 90_000_000
    command = [sys.executable, "-B", "-c", textwrap.dedent(code), str(tmp_path), str(wheel)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=100)
    shutil.rmtree(tmp_path / "1")
    shutil.rmtree(tmp_path / "2")
    wheel.unlink()
    assert said.returncode == 0, said.stderr
    assert 0 < int(said.stdout) < 40_000  # KiB


# ---- kill -9 --------------------------------------------------------------------------------------------------------


class Killing:
    """A process whose children work on a library and are killed."""

    def __init__(self, root, wheels):
        command = [sys.executable, "-B", "-m", "tests.cluster.library_process", str(root), *map(str, wheels)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def hear(self):
        """The next thing that it says."""
        return json.loads(self.process.stdout.readline())

    def run(self, line, kill_after=None):
        """What a child has said until it ended, and how it ended."""
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        said, pid = [], 0
        while True:
            words = self.hear()
            if words[0] == "ended":
                return said, words[1]
            if words[0] == "pid":
                pid = words[1]
            else:
                said.append(words)
            if kill_after is not None and pid and ["ready"] in said:
                time.sleep(kill_after)
                os.kill(pid, signal.SIGKILL)
                kill_after = None


def promised(said, before, digests):
    """What must be in the library and what may be, after a child that began with `before` has said all this."""
    sure, possible = set(before), set(before)
    keeping = []
    for word, what, *arguments in (words for words in said if words[0] != "ready"):
        if what in ("adopt", "obtain"):
            possible.add(arguments[-1])
            # Another `keep` may have been under way at the same time, or may come right after.
            if word == "done" and not any(arguments[-1] not in kept for kept in keeping):
                sure.add(arguments[-1])
        elif what == "keep":
            if word == "begin":
                keeping.append(arguments)
                sure &= set(arguments)
            else:
                keeping.remove(arguments)
    return sure, possible & set(digests)


def assert_recovered(root, said, before, wheels):
    """After `open` everything is whole, and what was said to be done is there."""
    library = asyncio.run(opened(root))
    assert_consistent(root)
    assert not list((root / "uploads").iterdir())
    assert not list((root / "damaged").iterdir())
    digests = {sha256(path) for path in wheels}
    there = {digest for digest in digests if library.has(digest)}
    sure, possible = promised(said, before, digests)
    assert sure <= there <= possible
    for tx in library.staged():
        assert open_package(Path(library.staged_tree(tx)).parent / "package.whl").digest in digests
        asyncio.run(library.discard(tx))
    return there


@pytest.fixture
def quick_disk(tmp_path):
    """Where fsync costs nothing: a kill, other than a power cut, does not show what was fsynced."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    place = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield place
    shutil.rmtree(place)


@pytest.mark.faults
def test_a_kill_at_any_step_leaves_a_consistent_library(quick_disk, wheels):
    root, status, step = quick_disk / "library", -signal.SIGKILL, 0
    with Killing(root, wheels) as killing:
        while status:
            step += 1
            said, status = killing.run(f"at {step}")
            assert status in (0, -signal.SIGKILL)
            if root.exists():
                assert_recovered(root, said, set(), wheels)
                shutil.rmtree(root)
    assert said[-1] == ["done", "keep"]
    assert step > 200, step


@pytest.mark.faults
def test_kills_at_random_moments_leave_a_consistent_library(quick_disk, wheels):
    root, rng, there = quick_disk / "library", random.Random(), set()
    done, runs, pace = 0, 0, 0.15
    with Killing(root, wheels) as killing:
        while runs < 40 or (done <= 40 and runs < 400):
            said, status = killing.run(runs, kill_after=rng.random() * pace)
            assert status == -signal.SIGKILL
            finished = sum(words[0] == "done" for words in said)
            pace = pace if finished else min(2.0, 1.2 * pace)  # a busy machine needs longer to get anywhere
            done, runs = done + finished, runs + 1
            there = assert_recovered(root, said, there, wheels)
    assert done > 40
