"""Work on a library in processes that are killed: `python -m tests.cluster.library_process ROOT PACKAGE…`.

For each line on its input it forks a child that works there until it is killed. A line is a seed, or `at N`: a fixed
course that kills itself at its Nth step on the disk. What the child has begun and done is told on the output.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path

from tests.cluster.packages import Peer

from penstock.cluster.disk import sha256
from penstock.cluster.library import Library

STEPS = ("open", "os.rename", "os.link", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree")

RELATIVE = ("os.remove", "os.rmdir")
"""`rmtree` names what it removes relative to a directory that it has open."""


def say(*words):
    """One line, also when the kill comes next."""
    os.write(1, (json.dumps(words) + "\n").encode())


class Worker:
    """Operations on a library, announced before and after."""

    def __init__(self, root, packages):
        self.library = Library(root)
        self.blobs = {sha256(path): path.read_bytes() for path in packages}
        self.digests = sorted(self.blobs)

    def sources(self, digest):
        """The package in some pieces."""
        return [Peer("peer", self.blobs[digest], most=1500)]

    async def do(self, what, *arguments):
        """One operation."""
        say("begin", what, *arguments)
        await getattr(self, what)(*arguments)
        say("done", what, *arguments)

    async def stage(self, tx, digest):
        await self.library.stage(tx, digest, self.sources(digest))

    async def adopt(self, tx, digest):
        if tx in self.library.staged() or self.library.has(digest):
            await self.library.adopt(tx, digest)

    async def obtain(self, digest):
        await self.library.obtain(digest, self.sources(digest))

    async def discard(self, tx):
        await self.library.discard(tx)

    async def keep(self, *digests):
        await self.library.keep(digests)

    async def receive(self, digest):
        async def chunks():
            yield self.blobs[digest]

        await self.library.receive(chunks(), limit=2**20)

    async def course(self):
        """Everything once, and what meets things that are there already."""
        first, second, third = self.digests[:3]
        await self.do("receive", first)
        await self.do("stage", "t1", first)
        await self.do("stage", "t1", first)
        await self.do("adopt", "t1", first)
        await self.do("stage", "t2", second)
        await self.do("obtain", third)
        await self.do("stage", "t3", third)
        await self.do("adopt", "t3", third)
        await self.do("discard", "t3")
        await self.do("keep", first)
        await self.do("discard", "t2")
        await self.do("keep")

    async def wander(self, seed):
        """Anything, for ever, three at a time."""
        rng = random.Random(seed)

        async def one(name):
            while True:
                digest = rng.choice(self.digests)
                await self.do("stage", f"{name}-{seed}", digest)
                if rng.random() < 0.8:
                    await self.do("adopt", f"{name}-{seed}", digest)
                await self.do("obtain", rng.choice(self.digests))
                await self.do("discard", f"{name}-{seed}")
                if rng.random() < 0.3:
                    await self.do("keep", *rng.sample(self.digests, 2))
                if rng.random() < 0.3:
                    await self.do("receive", digest)

        async with asyncio.TaskGroup() as group:
            for name in ("a", "b", "c"):
                group.create_task(one(name))


def kill_at(root, number):
    """Be killed at the `number`th step under `root`, whichever thread makes it."""
    left = number

    def hook(event, arguments):
        nonlocal left
        if event in STEPS and (event in RELATIVE or str(arguments[0]).startswith(str(root))):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


async def child(root, packages, line):
    """Until somebody kills this process."""
    worker = Worker(root, packages)
    if line.startswith("at "):
        kill_at(root, int(line[3:]))
    await worker.library.open()
    say("ready")
    if line.startswith("at "):
        await worker.course()
    else:
        await worker.wander(int(line))


def main():
    """Fork for each line; reap."""
    root, packages = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(child(root, packages, line.strip()))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        say("pid", pid)
        say("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
