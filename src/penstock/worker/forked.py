"""Work on a frozen copy of this process: `fork` gives the copy at once, whatever the size, and it computes elsewhere.

For the state of an executor: the copy encodes it while the executor goes on. The copy touches no socket and no thread
of its parent; it has one pipe and leaves as soon as it has written to it, or as soon as nobody reads.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from penstock.errors import WorkerError

DEADLINE = 30.0
"""Seconds after which a copy that has not finished is killed."""
POSSIBLE = sys.platform != "darwin"
"""A fork of a process with threads is not safe on macOS."""
_PIECE = 1 << 20
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
"""Loaded here: a copy must not wait for a loader's lock that a thread of its parent holds."""


def run_forked(work: Callable[[], bytes], done: Callable[[bytes | WorkerError], None]) -> None:
    """Run `work` in a copy of this process. `done` gets its result, or why there is none, in another thread; the copy
    is reaped by then. Raises `OSError` when there can be no copy."""
    reading, writing = os.pipe()
    try:
        with _uncollected():
            pid = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if pid == 0:
        _in_copy(work, writing)
    os.close(writing)
    threading.Thread(target=_collect, args=(pid, reading, done), name="copy", daemon=True).start()


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection just before or in the copy: it would write to every page."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _in_copy(work: Callable[[], bytes], writing: int) -> None:
    """Never returns."""
    status = 1
    try:
        gc.disable()
        _die_with_parent()
        os.dup2(writing, 3)
        os.closerange(4, 1 << 16)  # above all the ends of sockets whose closing tells others that this worker died
        os.nice(5)
        data = memoryview(work())
        while data:
            data = data[os.write(3, data[:_PIECE]) :]
        status = 0
    except BaseException as error:
        with contextlib.suppress(BaseException):
            os.write(2, f"a copy of the worker failed: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


def _die_with_parent() -> None:
    """So that nothing is left when the worker is killed (Linux)."""
    with contextlib.suppress(AttributeError):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _collect(pid: int, reading: int, done: Callable[[bytes | WorkerError], None]) -> None:
    alarm = threading.Timer(DEADLINE, os.kill, (pid, signal.SIGKILL))
    alarm.daemon = True
    alarm.start()
    pieces: list[bytes] = []
    try:
        while piece := os.read(reading, _PIECE):
            pieces.append(piece)
    finally:
        os.close(reading)
        _, status = os.waitpid(pid, 0)
        alarm.cancel()
    if os.waitstatus_to_exitcode(status) == 0:
        done(b"".join(pieces))
    else:
        done(WorkerError(f"the copy of the process that was to write the state ended with status {status}"))
