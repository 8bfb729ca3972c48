"""Nodes as processes of their own that are killed and paused, and what they are asked over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import httpx
import psutil
from tests.cluster.nodes import settings, until
from tests.faults.operations.changes import NOTHING, Packages, Told, request, told

from penstock.cluster.bus import Bus
from penstock.cluster.store import CatalogueStore, Sight

ROOT = Path(__file__).parents[3]
PATIENCE = 90.0
"""Seconds for anything that has to happen; nothing takes a tenth of it on a machine with nothing else to do."""
MARK = "FAULTS_CLUSTER"


class Node:
    """One process."""

    def __init__(self, name: str, data: Path, here: Path) -> None:
        self.name, self.data, self.here = name, data, here
        self.process: asyncio.subprocess.Process | None = None
        self.port = 0
        self.started = False
        self.lines: list[str] = []
        self._reader: asyncio.Task[None] | None = None

    async def start(self, url: str, prefix: str, *more: str) -> None:
        """Start the process; `ready` waits for it."""
        self.lines, self.port, self.started = [], 0, True
        self.here.mkdir(exist_ok=True)
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.cluster.node_process", url, self.name, prefix, str(self.data), *more,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
            env={**os.environ, MARK: prefix, "FAULTS_NODE": str(self.here)},
        )  # fmt: skip
        self._reader = asyncio.create_task(self._read(self.process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            self.lines.append(line.decode().strip())

    async def ready(self) -> None:
        """Wait until it is a member that has caught up."""
        line = await until(lambda: self._line("ready ") or self._ended(), PATIENCE)
        assert isinstance(line, str), f"node {self.name} ended while it started"
        self.port = int(line.split()[1])

    def _line(self, start: str) -> str | None:
        return next((line for line in self.lines if line.startswith(start)), None)

    def _ended(self) -> bool:
        return self.process is not None and self.process.returncode is not None

    async def order(self, *lines: str) -> None:
        """See `tests.cluster.node_process`."""
        for line in lines:
            self._send(line)
            if line != "release":
                await until(lambda line=line: self._line(f"armed {line}"), PATIENCE)
                self.lines.remove(f"armed {line}")

    def _send(self, line: str) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())

    async def reached(self, moment: str) -> None:
        """Wait until it is there."""
        await until(lambda: self._line(f"reached {moment}"), PATIENCE)
        self.lines.remove(f"reached {moment}")

    async def report(self) -> dict:
        """What it holds."""
        self._send("report")
        line = await until(lambda: self._line("report ") or self._ended(), PATIENCE)
        if not isinstance(line, str):
            return {}
        self.lines.remove(line)
        return json.loads(line.partition(" ")[2])

    @property
    def alive(self) -> bool:
        """Whether the process runs (or is stopped)."""
        return self.process is not None and self.process.returncode is None

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    async def died(self) -> None:
        """Wait for its end, and reap it."""
        assert self.process is not None
        async with asyncio.timeout(PATIENCE):
            await self.process.wait()
        await self.close()

    async def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)
        await self.died()

    async def leave(self) -> None:
        """End it in good order."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(PATIENCE / 3):
                assert await self.process.wait() == 0
        except TimeoutError:
            self.signal(signal.SIGUSR1)  # it tells where it hangs
            await asyncio.sleep(1.0)
            raise AssertionError(f"node {self.name} does not end") from None
        await self.close()

    async def close(self) -> None:
        """Release the pipes of a process that has ended."""
        process, self.process = self.process, None
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(OSError):
            await process.stdin.wait_closed()
        assert self._reader is not None
        await self._reader


class Cluster:
    """Nodes `a`, `b`, `c` of one cluster, with data directories that outlive them."""

    def __init__(self, url: str, prefix: str, packages: Packages, root: Path, *more: str, warm: bool = False) -> None:
        self.url, self.prefix, self.packages, self.root, self.more = url, prefix, packages, root, more
        if not warm:
            self.more += ("cold",)
        self.nodes: dict[str, Node] = {}
        self.urls: dict[str, str] = {}
        """Node -> its own way to Redis, where it has one."""
        self.client = httpx.AsyncClient(trust_env=False, timeout=2 * PATIENCE)
        self._bus = Bus(url, settings(prefix))
        self._store = CatalogueStore(self._bus, "", 1500)

    async def start(self, *names: str, ready: bool = True) -> None:
        """Start nodes, also those that were killed, together."""
        for name in names:
            if name not in self.nodes:
                self.nodes[name] = Node(name, self.root / f"data-{name}", self.root / f"here-{name}")
            await self.nodes[name].start(self.urls.get(name, self.url), self.prefix, *self.more)
        if ready:
            for name in names:
                await self.nodes[name].ready()

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def alive(self) -> list[str]:
        """The nodes that run."""
        return [name for name, node in self.nodes.items() if node.alive]

    async def revive(self, *, ready: bool = True) -> None:
        """Start again what was killed."""
        await self.start(*(name for name, node in self.nodes.items() if not node.alive and node.started), ready=ready)

    async def ready(self) -> None:
        """Wait until all nodes are members that have caught up."""
        for node in self.nodes.values():
            if node.alive:
                await node.ready()

    def others(self, *names: str) -> list[str]:
        """All nodes but these."""
        return [name for name in self.nodes if name not in names]

    def address(self, name: str) -> str:
        """Where a node listens."""
        return f"http://127.0.0.1:{self.nodes[name].port}"

    async def get(self, name: str, path: str) -> httpx.Response:
        """Ask a node."""
        return await self.client.get(self.address(name) + path)

    async def ask(
        self, kind: str, node: str, *, key: str = "", timeout: float | None = None, model: str = "chain", **more: object
    ) -> Told:
        """One request for an operation, and what came of it."""
        what = request(kind, self.packages, model) | more
        what["url"] = self.address(node) + what["url"]
        if timeout is not None:
            what["params"] = {**what["params"], "timeout": timeout}
        headers = {"Idempotency-Key": key} if key else {}
        try:
            response = await self.client.request(**what, headers=headers)
        except httpx.TransportError:
            return NOTHING
        body = response.json() if response.content else {}
        return told(response.status_code, body)

    async def insist(self, kind: str, node: str, *, key: str = "", **more: object) -> Told:
        """The same request again and again, as a client does whose answers get lost, until it is decided."""
        key = key or fresh()
        async with asyncio.timeout(PATIENCE):
            while (answer := await self.ask(kind, node, key=key, **more)).later:
                await asyncio.sleep(0.1)
        return answer

    async def look(self) -> Sight:
        """The catalogue in Redis."""
        return await self._store.look()

    async def __aenter__(self) -> Cluster:
        try:
            await self.start("a", "b", "c")
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            await self._end()
            with contextlib.suppress(AssertionError):  # that of the test counts
                await until(lambda: not strays(self.prefix, set()), PATIENCE)
            return
        try:
            for node in self.nodes.values():
                if node.alive:
                    await node.leave()
            await until(lambda: not strays(self.prefix, set()), PATIENCE)
        finally:
            await self._end()

    async def _end(self) -> None:
        """Leave nothing behind, whatever has happened."""
        await self.client.aclose()
        await self._bus.close()
        for node in self.nodes.values():
            if node.alive:
                node.signal(signal.SIGKILL)
                await node.died()
            elif node.process is not None:
                await node.close()


def fresh() -> str:
    """An idempotency key that nobody has used."""
    return uuid.uuid4().hex


def strays(mark: str, known: set[int]) -> list[str]:
    """Processes of a cluster that nobody accounts for."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid in known or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(MARK) == mark:
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
    return found
