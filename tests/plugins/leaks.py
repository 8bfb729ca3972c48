"""Fails a test that leaves something behind: a child process, a socket, an open file, a thread, a temporary file.

What is open is compared before a test's set-up and after its tear-down. Fixtures of a wider scope than one test own
what their set-up opened, until they are torn down; then it has to be gone as well. What is left gets a short grace
(threads and processes end a moment after they were told to) and one garbage collection before it counts as a leak.

Processes are recognised by a mark in their environment, so that a grandchild whose parent was killed is found too.
Temporary files are seen because the whole run gets a temporary directory of its own.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

GRACE = float(os.environ.get("PENSTOCK_TEST_GRACE", "3"))
"""Seconds that things may take to go away by themselves."""
MARK = "PENSTOCK_TEST_RUN"
ROOT = "PENSTOCK_TEST_ROOT"
_FD_DIR = "/proc/self/fd" if sys.platform.startswith("linux") else "/dev/fd"
_SHARED_FILES = ("/dev/null", "/dev/urandom", "/dev/random", "/dev/tty", "/proc/", "/sys/", "/memfd:")
_LIBRARY_THREADS = ("fsspecIO", "pydevd", "ThreadPoolExecutor-tmon")


class Thing(NamedTuple):
    """Something that can be left behind."""

    kind: str
    id: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.id} {self.text}".rstrip()

    def __hash__(self) -> int:
        return hash((self.kind, self.id))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thing) and (self.kind, self.id) == (other.kind, other.id)

    def __ne__(self, other: object) -> bool:
        return not self == other


def _open_files() -> set[Thing]:
    found = set()
    for name in os.listdir(_FD_DIR):
        if int(name) <= 2:  # pytest puts its capture files there
            continue
        try:
            target = os.readlink(f"{_FD_DIR}/{name}") if _FD_DIR.startswith("/proc") else name
        except OSError:
            continue
        if target.startswith(_SHARED_FILES):
            continue
        kind = "socket" if target.startswith("socket:") else "file"
        found.add(Thing(kind, f"{target} (fd {name})"))
    return found


def _threads() -> set[Thing]:
    return {
        Thing("thread", f"{thread.name} ({thread.ident})")
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and not thread.name.startswith(_LIBRARY_THREADS)
    }


def _describe(process: psutil.Process) -> str:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return f"not reaped: {process.name()}"
        return " ".join(process.cmdline() or [process.name()])[:200]
    except psutil.Error:
        return "?"


def _environ(pid: int) -> bytes:
    """A process's environment. It is empty for a moment while the process starts its program, so look again."""
    for _ in range(10):
        try:
            os.readlink(f"/proc/{pid}/exe")  # kernel threads and other people's processes have none for us
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return b""
        if environ:
            return environ
        time.sleep(0.005)
    return b""


class Processes:
    """Which processes belong to this run."""

    def __init__(self) -> None:
        self.mark = f"{os.getpid()}-{time.time_ns()}"
        self._known: dict[int, bool] = {}

    def _is_ours(self, pid: int) -> bool:
        """The mark is in the environment; the answer is remembered."""
        if pid not in self._known:
            self._known[pid] = f"{MARK}={self.mark}".encode() in _environ(pid).split(b"\0")
        return self._known[pid]

    def running(self) -> set[Thing]:
        """Children of this process, and what they started and did not take along."""
        pids = {child.pid for child in psutil.Process().children(recursive=True)}
        if os.path.isdir("/proc"):
            everything = {int(name) for name in os.listdir("/proc") if name.isdecimal()}
            for gone in self._known.keys() - everything:
                del self._known[gone]
            pids |= {pid for pid in everything - {os.getpid()} if self._is_ours(pid)}
        found = set()
        for pid in pids:
            try:
                process = psutil.Process(pid)
                found.add(Thing("process", f"{pid}@{process.create_time():.2f}", _describe(process)))
            except psutil.Error:
                continue
        return found


class Leaks:
    """The plugin's memory between hooks."""

    def __init__(self) -> None:
        # Not in that of a run that this one is a part of: the paths of sockets are short.
        root = os.environ.setdefault(ROOT, tempfile.gettempdir())
        self.directory = Path(tempfile.mkdtemp(prefix="pst-", dir=root))
        self.processes = Processes()
        self.before: set[Thing] = set()
        self.owned: dict[int, set[Thing]] = {}

    def snapshot(self) -> set[Thing]:
        """Everything that is open now."""
        temporary = {Thing("temporary", str(path)) for path in self.directory.iterdir()}
        return _open_files() | _threads() | self.processes.running() | temporary

    def left(self) -> set[Thing]:
        """What is open and neither was before the test nor belongs to a living fixture of wider scope."""
        return self.snapshot() - self.before - set().union(*self.owned.values())

    def settle(self) -> set[Thing]:
        """`left`, after it had the chance to become empty."""
        deadline = time.monotonic() + GRACE
        left = self.left()
        if left:
            gc.collect()
        while left and time.monotonic() < deadline:
            time.sleep(0.02)
            left = self.left()
        return left


_KEY: pytest.StashKey[Leaks] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    # pytest's own directories stay where they would be; everything else that asks for a temporary file gets ours.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    leaks = config.stash[_KEY] = Leaks()
    os.environ[MARK] = leaks.processes.mark
    os.environ["TMPDIR"] = tempfile.tempdir = str(leaks.directory)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_KEY].directory, ignore_errors=True)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    leaks = item.config.stash[_KEY]
    leaks.before = leaks.snapshot()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    if fixturedef.scope == "function":
        return (yield)
    leaks = request.config.stash[_KEY]
    before = leaks.snapshot()
    try:
        return (yield)
    finally:
        leaks.owned[id(fixturedef)] = leaks.snapshot() - before


def pytest_fixture_post_finalizer(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    leaks = request.config.stash[_KEY]
    leaks.before -= leaks.owned.pop(id(fixturedef), set())


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    outcome = yield
    leaks = item.config.stash[_KEY]
    left = leaks.settle()
    if item.get_closest_marker("faults"):
        # A process that was killed on purpose cannot tidy its directory.
        left = {thing for thing in left if thing.kind != "temporary"}
    if left:
        listing = "\n".join(f"  {thing}" for thing in sorted(left))
        pytest.fail(f"the test left behind:\n{listing}", pytrace=False)
    return outcome
