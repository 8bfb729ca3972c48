"""`python -m penstock.worker.forkserver FD`: has the library imported and forks one process per verification, so that
none has to start an interpreter.

No code of an author ever runs in this process itself. It has one thread and keeps no connections, so that a fork of it
is a sound process. For a model that requires something, the fork runs the interpreter of that model's environment.
Each verification is a session of its own; when it ends, all that it has started is killed and reaped before its end
is reported, also what left the session (Linux: orphans come to this process).

On FD: lines of JSON, `Run` (with a descriptor: the socket that the verification answers on) and `Kill` in, `Started`
and `Ended` out. End-of-file ends this process and all that runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import pkgutil
import resource
import selectors
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import psutil

import penstock.connectors
from penstock.worker import verify

__all__ = ["Ended", "Kill", "Run", "Started", "main"]

_LINE_LIMIT = 64 * 1024
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_REAPING = 5.0
"""Seconds that killed processes get to be gone."""
_WATCH = 0.2
"""Seconds between two looks at how many it has: the system's own limit does not hold for root."""
_ROOM = 64 * 2**20
"""Bytes over the memory limit in which the error can be told."""
_NOT_STARTED = 70


class Run(msgspec.Struct, tag="run", kw_only=True):
    """Start a verification; a descriptor comes with it."""

    id: int
    directory: str
    """Its working directory, and where its temporary files go."""
    output: str
    """The file that gets what it prints."""
    python: str = ""
    """The interpreter to run; empty: a fork of this process."""
    memory: int
    """Bytes of data over what this process has."""
    cpu: int
    """Seconds of processor time."""
    file: int
    """Bytes of a file that it writes."""


class Kill(msgspec.Struct, tag="kill"):
    """End a verification now; `Ended` follows."""

    id: int


class Started(msgspec.Struct, tag="started"):
    """The verification runs as this process."""

    id: int
    pid: int


class Ended(msgspec.Struct, tag="ended"):
    """The verification and all that it has started is gone."""

    id: int
    status: int
    """Exit status, or minus the signal."""
    crowd: bool = False
    """Whether it was killed because it had too many processes."""


_requests = msgspec.json.Decoder(Run | Kill)


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._running: dict[int, int] = {}
        """number of the request -> process id"""
        self._data = b""
        self._descriptors: list[int] = []
        self._adopts = _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._crowded: set[int] = set()
        self._processes = _count_processes() + 2 * verify.MOST_PROCESSES
        self._woken, self._alarm = socket.socketpair()
        for end in (self._woken, self._alarm):
            end.setblocking(False)

    def serve(self) -> None:
        """Until the other side closes."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._alarm.fileno(), warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            try:
                while True:
                    ready = {key.fileobj for key, _ in selector.select(_WATCH if self._running else None)}
                    if self._woken in ready:
                        self._woken.recv(4096)
                    self._reap()
                    self._watch()
                    if self._control in ready and not self._listen():
                        return
            finally:
                for number in list(self._running):
                    self._kill(number)
                    self._end(number)

    # ---- requests ---------------------------------------------------------------------------------------------------

    def _listen(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, _LINE_LIMIT, 16)
        self._descriptors += descriptors
        self._data += data
        while b"\n" in self._data:
            line, _, self._data = self._data.partition(b"\n")
            request = _requests.decode(line)
            if isinstance(request, Kill):
                self._kill(request.id)
            else:
                self._start(request, self._descriptors.pop(0))
        return bool(data)

    def _tell(self, what: Started | Ended) -> None:
        with contextlib.suppress(OSError):
            self._control.sendall(msgspec.json.encode(what) + b"\n")

    def _start(self, run: Run, stream: int) -> None:
        here = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            os.close(stream)
            self._tell(Ended(run.id, _NOT_STARTED))
            return
        if pid == 0:
            status = _NOT_STARTED
            try:
                self._become(run, stream, here)
                status = verify.answer(socket.socket(fileno=stream))
            finally:
                os._exit(status)
        os.close(stream)
        self._running[run.id] = pid
        self._tell(Started(run.id, pid))

    def _become(self, run: Run, stream: int, server: int) -> None:
        """In the fork: everything that the verification must have before code of others runs."""
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            os._exit(_NOT_STARTED)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        output = os.open(run.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.closerange(3, stream)
        os.closerange(stream + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        os.chdir(run.directory)
        for name in ("TMPDIR", "TEMP", "TMP"):
            os.environ[name] = run.directory
        self._limit(run)
        if run.python:
            os.set_inheritable(stream, True)
            for name in ("PYTHONPATH", "PYTHONHOME"):
                os.environ.pop(name, None)
            command = [run.python, "-P", "-m", "penstock.worker.verify", str(stream)]
            try:
                os.execv(run.python, command)
            except OSError as error:
                os.write(2, f"{run.python} cannot be run: {error}\n".encode())
                os._exit(_NOT_STARTED)

    def _limit(self, run: Run) -> None:
        memory = _data_bytes() + run.memory
        _lower(resource.RLIMIT_DATA, memory, memory + _ROOM)
        _lower(resource.RLIMIT_CPU, run.cpu, run.cpu + 1)
        _lower(resource.RLIMIT_FSIZE, run.file, run.file)
        _lower(resource.RLIMIT_CORE, 0, 0)
        _lower(resource.RLIMIT_NPROC, self._processes, self._processes)

    # ---- ends -------------------------------------------------------------------------------------------------------

    def _kill(self, number: int) -> None:
        pid = self._running.get(number)
        if pid is not None:
            _signal(os.kill, pid)  # it may not have its session yet
            _signal(os.killpg, pid)

    def _watch(self) -> None:
        """Kill what multiplies."""
        if not self._running or not sys.platform.startswith("linux"):
            return
        sessions = Counter(_session(int(name)) for name in os.listdir("/proc") if name.isdecimal())
        for number, pid in self._running.items():
            if sessions[pid] > verify.MOST_PROCESSES:
                self._crowded.add(number)
                self._kill(number)

    def _reap(self) -> None:
        for number, pid in list(self._running.items()):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                self._end(number)
        if self._adopts and not self._running:
            self._end_strays()

    def _end(self, number: int) -> None:
        """Leave nothing of a verification, then say so. Its number is its own until it is reaped, at last."""
        pid = self._running[number]
        _signal(os.killpg, pid)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        if self._adopts:
            self._end_strays()
        _, status = os.waitpid(pid, 0)
        del self._running[number]
        self._tell(Ended(number, os.waitstatus_to_exitcode(status), number in self._crowded))
        self._crowded.discard(number)

    def _end_strays(self) -> None:
        """Kill and reap what ended verifications have left. What a killed one had started comes here in turn."""
        deadline = time.monotonic() + _REAPING
        while strays := _children() - set(self._running.values()):
            for pid in strays:
                _signal(os.kill, pid)
            for pid in strays:
                with contextlib.suppress(ChildProcessError):
                    while os.waitpid(pid, os.WNOHANG) == (0, 0):
                        if time.monotonic() > deadline:
                            return
                        time.sleep(0.001)


def _signal(send: object, pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        send(pid, signal.SIGKILL)  # type: ignore[operator]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def _lower(limit: int, soft: int, hard: int) -> None:
    """Set a limit, never over the one in force; some systems do not have it."""
    _, most = resource.getrlimit(limit)
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(limit, (soft, hard))


def _data_bytes() -> int:
    """Bytes of data that this process has."""
    try:
        fields = Path("/proc/self/statm").read_text().split()
        return int(fields[5]) * resource.getpagesize()
    except OSError:
        return int(psutil.Process().memory_info().vms)


def _children() -> set[int]:
    """Processes whose parent this one is, dead ones too."""
    me = os.getpid()
    try:
        return {int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()}
    except OSError:
        return {child.pid for child in psutil.Process().children()}


def _count_processes() -> int:
    """Processes and threads of this user."""
    mine = os.getuid()
    count = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real == mine:
                count += process.num_threads()
    return count


def _prctl(option: int, value: int) -> bool:
    """Linux; elsewhere False."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def _import_library() -> None:
    """What flows and their loading import, besides what is large and seldom used. Nothing here may start a thread."""
    for name in ("penstock.flow.failure", "penstock.model.loader", "packaging.specifiers"):
        importlib.import_module(name)
    for module in pkgutil.iter_modules(penstock.connectors.__path__, "penstock.connectors."):
        if not module.name.startswith("penstock.connectors.sql_"):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)


def main(arguments: list[str]) -> int:
    """`FD`: the control socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = _Server(socket.socket(fileno=int(arguments[0])))
    _import_library()
    # What is here is shared by all forks: the collector need not write to it.
    gc.collect()
    gc.freeze()
    server.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
