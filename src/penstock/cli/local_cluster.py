"""A cluster on this machine: node processes, and a Valkey of our own when no Redis is named.

Every node process holds the read end of a pipe from us as its standard input and stops when the pipe breaks, so the
cluster goes away with its parent, also when that is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

from penstock.client import AsyncClient, ClientError
from penstock.cluster.embedded import EmbeddedValkey
from penstock.errors import ClusterError, UsageError

HOST = "127.0.0.1"
CHECKPOINTS = "checkpoints"
"""The folder for durable checkpoints, among those of the nodes."""
READY_TIMEOUT = 60.0
"""Seconds until every node must be ready."""
STOP_GRACE = 15.0
"""Seconds that a node may take to stop before it is killed."""


@dataclass
class NodeProcess:
    """One node of the cluster."""

    name: str
    port: int
    log: IO[bytes] | None = field(default=None, repr=False)
    process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """Its process; 0 before it is started."""
        return 0 if self.process is None else self.process.pid

    @property
    def status(self) -> int | None:
        """Its exit status; `None` while it runs."""
        return None if self.process is None else self.process.returncode

    def last_words(self, limit: int = 1500) -> str:
        """The end of its log."""
        if self.log is None or self.log.closed:
            return ""
        end = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), limit, max(0, end - limit)).decode(errors="replace").strip()


class LocalCluster:
    """`async with LocalCluster(3) as cluster: …`: `nodes` are ready inside, and gone afterwards.

    Raises `UsageError` for a port in use, before anything is started, and `ClusterError` when a node does not come up
    or Redis cannot be used. `data`: where the nodes keep packages and journals, each in a folder of its own; without
    it they go away with the cluster. `checkpoints`: where durable checkpoints live (any fsspec URL); default: beside
    that. `options`: further ones of `penstock node`, for each node.
    """

    def __init__(
        self,
        nodes: int = 3,
        port: int = 8700,
        *,
        redis: str | None = None,
        cluster: str = "penstock",
        data: Path | None = None,
        checkpoints: str | None = None,
        options: tuple[str, ...] = (),
        on_progress: Callable[[str], None] = lambda text: None,
    ) -> None:
        if nodes < 1:
            raise UsageError(f"a cluster has at least 1 node, not {nodes}")
        if port + nodes - 1 > 65535:
            raise UsageError(f"there are no {nodes} ports from {port} on")
        self.redis, self.cluster, self.data, self.on_progress = redis, cluster, data, on_progress
        self.checkpoints, self.options = checkpoints, options
        self.valkey: EmbeddedValkey | None = None
        self.directory = Path()
        self.nodes = [NodeProcess(f"node-{i + 1}", port + i) for i in range(nodes)]

    async def __aenter__(self) -> LocalCluster:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything and wait until it is ready. Nothing is left behind when that fails or is cancelled."""
        check_ports([node.port for node in self.nodes])
        self.directory = Path(tempfile.mkdtemp(prefix="penstock-up-"))
        try:
            await self._start()
        except BaseException:
            await asyncio.shield(self.stop())
            raise

    async def _start(self) -> None:
        if self.redis is None:
            self.on_progress("starting Valkey")
            self.valkey = EmbeddedValkey()
            await self.valkey.start()
            self.redis = self.valkey.url
        else:
            await check_redis(self.redis, self.cluster)
        for node in self.nodes:
            # Logs have no name in the file system, so they cannot be left behind.
            node.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `stop`
            node.process = await self._spawn(node, node.log.fileno())
        await self._until_ready()

    def _checkpoints(self) -> str:
        if self.checkpoints is not None:
            return store_url(self.checkpoints)
        return str((self.directory if self.data is None else self.data.absolute()) / CHECKPOINTS)

    async def _spawn(self, node: NodeProcess, log: int) -> asyncio.subprocess.Process:
        # URLs may hold passwords, and arguments can be seen by everybody on the machine.
        urls = {"PENSTOCK_REDIS": self.redis or "", "PENSTOCK_CHECKPOINTS": self._checkpoints()}
        environ = os.environ | urls | {"NO_COLOR": "1"}
        environ.pop("PENSTOCK_TOKEN", None)
        kept = () if self.data is None else ("--data", str(self.data.absolute() / node.name))
        # Nobody can know an earlier catalogue of a Valkey that we have just started, unless the nodes have journals.
        alone = ("--found-after", "0") if self.valkey is not None and self.data is None else ()
        return await asyncio.create_subprocess_exec(
            # -P: a file `http.py` in the working directory must not stand in for Python's own module.
            sys.executable, "-P", "-m", "penstock.cli", "node", "--name", node.name, "--port", str(node.port),
            "--bind", HOST, "--cluster", self.cluster, "--until-stdin-closes", "--home", str(self.directory),
            *kept, *alone, *self.options,
            stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, env=environ,
            start_new_session=True,  # Ctrl-C is for us; we stop the nodes in good order
        )  # fmt: skip

    async def _until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT
        waiting = list(self.nodes)
        while waiting:
            self.on_progress(f"waiting for {', '.join(node.name for node in waiting)}")
            node = waiting[0]
            if node.status is not None:
                raise ClusterError(f"{node.name} ended with status {node.status} while starting:\n{node.last_words()}")
            if await _ready(node.url):
                waiting.pop(0)
            elif time.monotonic() > deadline:
                raise ClusterError(f"{node.name} was not ready within {READY_TIMEOUT:.0f} s:\n{node.last_words()}")
            else:
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Stop every node, then Valkey; reap all; remove what they left."""
        await asyncio.gather(*(_stop(node.process) for node in self.nodes if node.process is not None))
        if self.valkey is not None:
            await self.valkey.stop()
        for node in self.nodes:
            if node.log is not None:
                node.log.close()
        if self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)


def store_url(text: str) -> str:
    """A file store as somebody has named it: a URL as it is, a directory by its whole path."""
    return text if "://" in text else os.path.abspath(text)


async def one_ends(nodes: list[NodeProcess]) -> None:
    """Wait until one of `nodes` has ended."""
    waiters = [asyncio.ensure_future(node.process.wait()) for node in nodes if node.process is not None]
    try:
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()


async def _stop(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, then SIGKILL; reap."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_GRACE)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    if process.stdin is not None:
        process.stdin.close()
        with contextlib.suppress(OSError):
            await process.stdin.wait_closed()


async def _ready(url: str) -> bool:
    async with AsyncClient(url, timeout=2.0) as client:
        try:
            return await client.ready()
        except ClientError:
            return False


def check_ports(ports: list[int]) -> None:
    """Raises `UsageError` when one of `ports` cannot be bound on the loopback."""
    for port in ports:
        bind(HOST, port).close()


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket bound to the address. Raises `UsageError` when that is not possible, naming the port."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UsageError(f"{host!r} is not an address of this machine: {error.strerror}") from None
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: not stopped by TIME_WAIT
        sock.bind(address)
        # Two sockets may share a bound port until one listens, so only listening proves that it is free.
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise UsageError(
            f"port {port} on {host} cannot be used: {error.strerror}",
            remedy="choose another with --port, or stop what uses it",
        ) from None
    return sock


async def check_redis(url: str, cluster: str) -> None:
    """Raises `ClusterError` (or `UsageError` for a bad URL) when Redis cannot be used."""
    from penstock.cluster.bus import Bus
    from penstock.settings import ClusterSettings

    bus = Bus(url, ClusterSettings(prefix=cluster))
    try:
        await bus.start()
    finally:
        await bus.close()
