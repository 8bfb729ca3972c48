"""Models are tried out in throw-away processes, so that no code of an author runs in this one.

One *forkserver* process (`penstock.worker.forkserver`) is kept, with the library imported; each verification is a fork
of it with limits of its own. How it is asked and what its end means is in `penstock.cluster.trial`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil

from penstock.cluster.cancellation import end
from penstock.cluster.trial import VerifyLimits, converse, last_words, topology_of, unanswered
from penstock.cluster.variables import without_secrets
from penstock.errors import FlowError, WorkerError
from penstock.flow.graph import Topology
from penstock.model.environment import BASE, Environment
from penstock.worker.forkserver import Ended, Kill, Run, Started
from penstock.worker.verify import Request

__all__ = ["Verified", "Verifier", "VerifyLimits"]

_LOG = "forkserver.log"
_START = 20.0
"""Seconds until a forkserver must have forked."""
_END = 10.0
"""Seconds until a killed verification must be gone."""


class Verified(msgspec.Struct, frozen=True):
    """A model that can be run."""

    topology: Topology


@dataclass(eq=False)
class _Verification:
    """One process, as seen from here."""

    id: int
    forked: asyncio.Future[int]
    """Its process id."""
    ended: asyncio.Future[Ended]
    """When all that it had started is gone; an exception: the forkserver is."""


class _ServerLost(Exception):
    """The forkserver died; what ran in it is lost."""

    def __init__(self, forked: bool) -> None:
        self.forked = forked
        """Whether the verification had been forked."""


class Verifier:
    """Verifications on this node, at most one per processor at a time."""

    def __init__(self, limits: VerifyLimits | None = None) -> None:
        self._limits = limits or VerifyLimits()
        self._room = asyncio.Semaphore(os.cpu_count() or 1)
        self._starting = asyncio.Lock()
        self._server: _Server | None = None
        self._directory: Path | None = None
        self._closed = False

    async def start(self) -> None:
        """Start the forkserver; otherwise the first verification does. Raises `WorkerError`."""
        self._closed = False
        await self._running()

    async def close(self) -> None:
        """End everything; verifications that run fail with `WorkerError`."""
        self._closed = True
        async with self._starting:
            server, self._server = self._server, None
            directory, self._directory = self._directory, None
            if server is not None:
                await server.close()
            if directory is not None:
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def verify(
        self,
        tree: str,
        config: dict[str, Any] | None = None,
        *,
        environment: Environment = BASE,
        self_test: bool = True,
    ) -> Verified:
        """Import the model at `tree` (as for `load_graph`) with this configuration, build its flow, run its
        `self_test()`. Raises `FlowError` or `UsageError` with the text that its author would see, also when it breaks a
        limit, and `WorkerError` when no process can be started at all."""
        request = Request(target=tree, config=config or {}, self_test=self_test, memory=self._limits.memory)
        async with self._room:
            for last in (False, True):
                server = await self._running()
                try:
                    return await self._attempt(server, request, environment)
                except _ServerLost as lost:
                    if last and lost.forked:
                        text = f"verifying {tree!r} ended the process that all verifications start from, twice"
                        raise FlowError(None, text, remedy="a flow's file must not end other processes") from None
                    if last:
                        words = last_words(server.directory / _LOG)
                        raise WorkerError(f"no process for verifications comes up; its last words: {words}") from None
        raise AssertionError

    async def _running(self) -> _Server:
        async with self._starting:
            if self._closed:
                raise WorkerError("this node is being stopped: nothing is verified any more")
            if self._directory is None:
                self._directory = Path(tempfile.mkdtemp(prefix="penstock-verify-"))
            if self._server is None or not self._server.alive:
                if self._server is not None:
                    await self._server.close()
                self._server = await _Server.start(self._directory)
            return self._server

    async def _attempt(self, server: _Server, request: Request, environment: Environment) -> Verified:
        place = Path(tempfile.mkdtemp(dir=server.directory))
        (place / "tmp").mkdir()
        python = environment.python if environment.key else ""
        run = Run(
            id=server.next_id(),
            directory=str(place / "tmp"),
            output=str(place / "output"),
            python=python,
            memory=self._limits.memory,
            cpu=max(1, round(self._limits.cpu)),
            file=self._limits.file,
        )
        ours, theirs = socket.socketpair()
        try:
            verification = server.run(run, theirs)
            try:
                answer, problem = await converse(ours, request, verification.ended, self._limits.seconds)
            finally:
                ended = await server.finish(verification)
            if answer is None:
                words = await asyncio.to_thread(last_words, place / "output")
                problem = "crowd" if ended.crowd else problem
                raise unanswered(request, self._limits, ended.status, problem, words)
        finally:
            ours.close()
            theirs.close()
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, place, ignore_errors=True))
        return Verified(topology_of(answer))


@dataclass(eq=False)
class _Server:
    """A forkserver process and the stream to it."""

    process: asyncio.subprocess.Process
    control: socket.socket
    directory: Path
    running: dict[int, _Verification] = field(default_factory=dict)
    listener: asyncio.Task[None] | None = None
    alive: bool = True
    last_id: int = 0

    @classmethod
    async def start(cls, directory: Path) -> _Server:
        """Raises `WorkerError`. The process needs a moment until it forks; requests wait for that."""
        ours, theirs = socket.socketpair()
        try:
            with (directory / _LOG).open("wb") as log:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-P", "-m", "penstock.worker.forkserver", str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(theirs.fileno(),),
                    env=without_secrets(), process_group=0,
                )  # fmt: skip
        except OSError as error:
            ours.close()
            raise WorkerError(f"the process for verifications cannot be started: {error}") from error
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        server = cls(process, ours, directory)
        server.listener = asyncio.create_task(server._listen())
        return server

    async def close(self) -> None:
        """End-of-file ends it in good order, with all that runs."""
        self.alive = False
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_WR)
        try:
            async with asyncio.timeout(_END):
                await self.process.wait()
        except TimeoutError:
            pass
        finally:
            if self.process.returncode is None:
                self.process.kill()
                await self.process.wait()
            await end(self.listener)
            self.control.close()

    def next_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def run(self, run: Run, stream: socket.socket) -> _Verification:
        """Start a verification that answers on `stream`, which is closed here. Raises `_ServerLost`."""
        loop = asyncio.get_running_loop()
        verification = _Verification(run.id, loop.create_future(), loop.create_future())
        line = msgspec.json.encode(run) + b"\n"
        try:
            sent = socket.send_fds(self.control, [line], [stream.fileno()])
        except OSError:
            sent = 0
        stream.close()
        if sent != len(line):
            self._lose()
            raise _ServerLost(forked=False)
        self.running[run.id] = verification
        return verification

    async def finish(self, verification: _Verification) -> Ended:
        """End a verification if it has not ended; how it did. Raises `_ServerLost`."""
        if not verification.ended.done():
            with contextlib.suppress(OSError):
                self.control.send(msgspec.json.encode(Kill(verification.id)) + b"\n")
        try:
            async with asyncio.timeout(_END + _START):
                ended = await asyncio.shield(verification.ended)
            if not self.alive:  # it has killed all that ran
                raise _ServerLost(verification.forked.done())
            return ended
        except TimeoutError:
            self._lose()
            raise _ServerLost(verification.forked.done()) from None
        finally:
            self.running.pop(verification.id, None)

    def _lose(self) -> None:
        """It is of no use any more."""
        self.alive = False
        if self.process.returncode is None:
            self.process.kill()

    async def _listen(self) -> None:
        """Take what it reports, until it is gone."""
        reports = msgspec.json.Decoder(Started | Ended)
        loop, data = asyncio.get_running_loop(), b""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            while part := await loop.sock_recv(self.control, 1 << 16):
                data += part
                while b"\n" in data:
                    line, _, data = data.partition(b"\n")
                    self._take(reports.decode(line))
        self._lose()
        for verification in self.running.values():
            if verification.forked.done():
                _kill_session(verification.forked.result())
            if not verification.ended.done():
                verification.ended.set_exception(_ServerLost(verification.forked.done()))
                verification.ended.exception()

    def _take(self, report: Started | Ended) -> None:
        verification = self.running.get(report.id)
        if verification is None:
            return
        if isinstance(report, Started):
            verification.forked.set_result(report.pid)
        elif not verification.ended.done():
            verification.ended.set_result(report)


def _kill_session(session: int) -> None:
    """What a verification has left when the forkserver could not clear up any more."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == session:
                process.kill()
