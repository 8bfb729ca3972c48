"""One trial of a flow in a throw-away process: what it is asked, what it answers, and what its end means.

`describe` starts such a process for one run, as its user would. Those of a node are started by
`penstock.cluster.verification`, with limits. Answers are JSON on a socket of the trial's own, length first; what the
author's code prints goes to a file and is looked at only when there is no answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from penstock.cluster.cancellation import end
from penstock.errors import FlowError, UsageError
from penstock.flow.graph import Topology
from penstock.worker.verify import ANSWER_LIMIT, LENGTH, MOST_PROCESSES, UNANSWERED, Answer, Request

__all__ = ["VerifyLimits", "converse", "describe", "last_words", "topology_of", "unanswered"]

_LAST_WORDS = 2000
"""Characters."""
_CLOSED_GRACE = 0.5
"""Seconds between the end of the answer's stream and the end of the process."""


class VerifyLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one verification may use."""

    seconds: float = 60.0
    """From its start to its answer."""
    memory: int = 2 * 2**30
    """Bytes of data, each of its processes."""
    cpu: float = 60.0
    """Seconds of processor time, each of its processes."""
    file: int = 256 * 2**20
    """Bytes of one file."""


async def describe(target: str, config: dict[str, Any] | None = None, seconds: float = 60.0) -> Topology:
    """The topology of the flow at `target`, for a run by its own user: in this directory, with all variables, without
    `self_test()` and without a limit but the time. Raises as `Verifier.verify` does."""
    request = Request(target=target, config=config or {}, self_test=False)
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.NamedTemporaryFile(prefix="penstock-describe-") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "penstock.worker.verify", str(theirs.fileno()),
            stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(theirs.fileno(),),
            process_group=0,
        )  # fmt: skip
        theirs.close()
        ended = asyncio.create_task(process.wait())
        try:
            answer, problem = await converse(ours, request, ended, seconds)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
            status = await ended
        if answer is None:
            words = last_words(Path(output.name))
            raise unanswered(request, VerifyLimits(seconds=seconds), status, problem, words)
    return topology_of(answer)


def topology_of(answer: Answer) -> Topology:
    if answer.topology is not None:
        return answer.topology
    raise FlowError(None, answer.error) if answer.flow else UsageError(answer.error)


async def converse(
    ours: socket.socket, request: Request, ended: asyncio.Future[Any], seconds: float
) -> tuple[Answer | None, str]:
    """The answer, or what prevented it: `time`, `closed`, or nothing that is known here."""
    talk = asyncio.create_task(_talk(ours, request))
    try:
        async with asyncio.timeout(seconds):
            first: list[asyncio.Future[Any]] = [talk, ended]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not talk.done():
                await asyncio.wait([talk], timeout=_CLOSED_GRACE)  # what was written before the end is still there
            answer = talk.result() if talk.done() else None
            if answer is None and not ended.done():
                await asyncio.wait([ended], timeout=_CLOSED_GRACE)
                return None, "" if ended.done() else "closed"
            return answer, ""
    except TimeoutError:
        return None, "time"
    finally:
        await end(talk)


def unanswered(request: Request, limits: VerifyLimits, status: int, problem: str, words: str) -> FlowError:
    """Why there is no answer, for the author. Without `request.memory` only the limit of time was in force."""
    target, remedy = request.target, "a flow's file only says what the flow is"
    said = f"; its last words were:\n{words}" if words else ""
    if problem == "time":
        text = f"the flow at {target!r} was not built after {limits.seconds:g} s"
        remedy = "building a flow must not do the work itself: look for loops or connections at import time"
    elif problem == "crowd":
        text = f"importing {target!r} started more than {MOST_PROCESSES} processes"
    elif request.memory and status == -signal.SIGXCPU:
        text = f"the flow at {target!r} was not built after {limits.cpu:g} s of processor time"
        remedy = "building a flow must not do the work itself: look for loops at import time"
    elif problem == "closed" or status == UNANSWERED:
        text = f"importing {target!r} closed descriptors that it had not opened"
        remedy = "close only what your code has opened"
    elif request.memory and status in (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGBUS):
        text = f"importing {target!r} ended the interpreter ({_ending(status)}){said}"
        remedy = (
            f"it may use {limits.memory / 2**20:,.0f} MiB of memory while it is verified; the machine may have less"
        )
    else:
        text = f"importing {target!r} ended the interpreter ({_ending(status)}){said}"
        remedy += "; work belongs into its steps"
    return FlowError(None, text, remedy=remedy)


async def _talk(sock: socket.socket, request: Request) -> Answer | None:
    """Ask, and read the answer; `None` when the stream ends without one that can be read."""
    body = msgspec.json.encode(request)
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    try:
        await loop.sock_sendall(sock, LENGTH.pack(len(body)) + body)
        (size,) = LENGTH.unpack(await _exactly(sock, LENGTH.size))
        if size > ANSWER_LIMIT:
            return None
        return msgspec.json.decode(await _exactly(sock, size), type=Answer)
    except (OSError, EOFError, msgspec.MsgspecError):
        return None


async def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = await asyncio.get_running_loop().sock_recv(sock, min(size - len(data), 1 << 18))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def last_words(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4 * _LAST_WORDS))
            return file.read().decode(errors="replace").strip()[-_LAST_WORDS:]
    except OSError:
        return ""


def _ending(status: int) -> str:
    """An exit status for people."""
    try:
        return signal.Signals(-status).name if status < 0 else f"status {status}"
    except ValueError:
        return f"signal {-status}"
