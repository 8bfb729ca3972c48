"""The limit of W6: what an operation cannot do without, written by hand, and what the pieces cost on this machine.

    python -m bench.limit_w6 operations NODES     the same steps over so many processes, without protocol and checks
    python -m bench.limit_w6 units                interpreter, fork, round trip to Redis, fsync

By hand, a node is a process that has the library imported and one connection to the same Valkey. It keeps what the
promises need and nothing else: a package is written and unpacked with fsync and imported in a forked process; a node
journals (temporary file, fsync, rename, fsync of the directory) what it has prepared, what was decided and what is in
effect; it looks at Redis before each step and says there when it is done. All nodes do one step side by side, as fast
as the slowest of them. To go online, the module is then imported in the nodes that have a part in it, each tells Redis,
learns of the others, and the first record is there. Nobody survives a crash, so it is a limit and not a contestant.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import redis

import penstock.model.loader  # noqa: F401 - a node has it imported, and so has what it forks
from bench.measure import report
from bench.w6_packages import package
from penstock.cluster.embedded import EmbeddedValkey

RUNS = 5
"""Times that an operation is done; one more before, which is not counted."""
JOURNAL = b"x" * 2000
PREPARE, DECIDE, APPLY, LOAD, CONNECT, START = ["prepare", "decide", "apply", "load", "connect", "start"]
CHANGE = (PREPARE, DECIDE, APPLY)
RUN = (LOAD, CONNECT, START)
UNITS: dict[str, str] = {
    "interpreter": "start one Python interpreter and `import penstock`: what a cold start would cost at least",
    "worker": "the same with all that a worker imports",
    "eight workers": "eight of those at once, as when eight nodes replace their warm workers",
    "fork": "fork a process that has the library imported, and reap it",
    "round trip": "one round trip to Redis over its Unix socket",
    "fsync": "replace a journal of 2 kB: temporary file, fsync, rename, fsync of the directory",
}


class Node:
    """One node by hand."""

    def __init__(self, name: str, home: Path, url: str) -> None:
        self.name, self.home = name, home
        home.mkdir()
        self.redis = redis.Redis.from_url(url)

    def step(self, what: str, wheel: Path, fork: bool, keep: bool) -> int:
        """Do one step; the time at its end (monotonic ns). `keep`: the package is new here; `fork`: it was not verified
        with this configuration."""
        self.redis.hgetall("state")
        if what == PREPARE:
            if keep:
                lay_down(wheel, self.home / f"tree-{time.monotonic_ns()}")
            if fork:
                in_child(lambda: run_module(wheel))
        if what in CHANGE:
            journal(self.home)
        elif what == LOAD:
            run_module(wheel)
        if what != START:
            self.redis.hset("state", self.name, what)
        return time.monotonic_ns()


def lay_down(wheel: Path, tree: Path) -> None:
    """A package and its files, safe on the disk."""
    tree.mkdir()
    content = wheel.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        files = {wheel.name: content} | {name: archive.read(name) for name in archive.namelist()}
    for name, data in files.items():
        path = tree / name
        path.parent.mkdir(exist_ok=True)
        write(path, data)
    for folder, _, _ in os.walk(tree):
        sync(folder)


def write(path: Path, data: bytes) -> None:
    """A file, and fsync."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: str | Path) -> None:
    """fsync of a directory."""
    number = os.open(folder, os.O_RDONLY)
    os.fsync(number)
    os.close(number)


def journal(home: Path) -> None:
    """Replace a journal, as safe as can be."""
    write(home / "journal.new", JOURNAL)
    os.rename(home / "journal.new", home / "journal")
    sync(home)


def run_module(wheel: Path) -> None:
    """Import the model's module out of its package."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read("first_record.py")
    exec(compile(text, "first_record.py", "exec"), {"__name__": "first_record"})


def in_child(work: Callable[[], None]) -> None:
    """In a forked process, which is reaped."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the forked process failed")


def serve(pipe: Connection[Any, Any], name: str, home: Path, url: str) -> None:
    """The process of a node: steps in, times out, until `None`."""
    node = Node(name, home, url)
    while (asked := pipe.recv()) is not None:
        pipe.send(node.step(*asked))


class Cluster:
    """The processes of all nodes."""

    def __init__(self, nodes: int, scratch: Path, url: str) -> None:
        self.pipes: list[Connection[Any, Any]] = []
        self.processes = []
        context = multiprocessing.get_context("fork")
        for number in range(nodes):
            ours, theirs = context.Pipe()
            name = f"node-{number}"
            process = context.Process(target=serve, args=(theirs, name, scratch / name, url), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def go(self, steps: tuple[str, ...], wheel: Path, *, fork: bool, keep: bool, on: int) -> int:
        """The steps, one after the other on all nodes (those of a run on the first `on`); the earliest end of the last
        step."""
        ends = [0]
        for what in steps:
            taking = self.pipes[:on] if what in RUN else self.pipes
            for pipe in taking:
                pipe.send((what, wheel, fork, keep))
            ends = [pipe.recv() for pipe in taking]
        return min(ends) if steps[-1] == START else max(ends)

    def close(self) -> None:
        """End all."""
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join()


async def operations(nodes: int) -> None:
    """Every operation, several times."""
    with tempfile.TemporaryDirectory(prefix="w6-") as folder:
        scratch = Path(folder)
        wheel = package(scratch / "packages", "by-hand", scratch / "arrived").path
        async with EmbeddedValkey() as valkey:
            cluster = Cluster(nodes, scratch, valkey.url)
            try:
                for number in range(RUNS + 1):
                    for what, (steps, fork, keep, on) in by_hand(nodes).items():
                        began = time.monotonic_ns()
                        ended = cluster.go(steps, wheel, fork=fork, keep=keep, on=on)
                        if number:
                            report(what=what, nodes=nodes, ms=(ended - began) / 1e6)
            finally:
                cluster.close()


def by_hand(nodes: int) -> dict[str, tuple[tuple[str, ...], bool, bool, int]]:
    """Operation -> its steps, whether something is verified, whether a package is new, on how many nodes it runs."""
    both = min(2, nodes)
    found = {
        "add": (CHANGE, True, True, 0),
        "online: first record": (CHANGE + RUN, False, False, both),
        "online, new configuration: first record": (CHANGE + RUN, True, False, both),
        "offline": (CHANGE, False, False, 0),
        "update": (CHANGE, True, True, 0),
        "rollback": (CHANGE, False, False, 0),
        "delete": (CHANGE, False, False, 0),
    }
    if nodes > 1:
        found["online on every node: first record"] = (CHANGE + RUN, False, False, nodes)
    return found


# ---- what the pieces cost --------------------------------------------------------------------------------------------


async def units() -> None:
    """What the pieces cost: the median of several."""
    start = [sys.executable, "-P", "-c"]
    library, worker = "import penstock", "import penstock, penstock.worker.loop"
    one("interpreter", lambda: subprocess.run([*start, library], check=True), RUNS)
    one("worker", lambda: subprocess.run([*start, worker], check=True), RUNS)
    one("eight workers", lambda: at_once([*start, worker], 8), 2)
    one("fork", lambda: in_child(lambda: None), 20)
    with tempfile.TemporaryDirectory(prefix="w6-") as folder:
        one("fsync", lambda: journal(Path(folder)), 50)
    async with EmbeddedValkey() as valkey:
        connection = redis.Redis.from_url(valkey.url)
        one("round trip", lambda: connection.ping(), 1000)
        connection.close()


def one(unit: str, work: Callable[[], object], runs: int) -> None:
    """Report the median of so many runs; the first one is not counted."""
    took = []
    for _ in range(runs + 1):
        began = time.monotonic_ns()
        work()
        took.append((time.monotonic_ns() - began) / 1e6)
    report(unit=unit, ms=statistics.median(took[1:]))


def at_once(command: list[str], number: int) -> None:
    """So many processes side by side, until all have ended."""
    for process in [subprocess.Popen(command) for _ in range(number)]:
        if process.wait():
            raise RuntimeError("a process failed")


if __name__ == "__main__":
    asyncio.run(operations(int(sys.argv[2])) if sys.argv[1] == "operations" else units())
