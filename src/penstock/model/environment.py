"""Isolated environments: one virtual environment per locked set of requirements, made by uv, shared by all models that
lock the same.

On disk, under one root that several processes may use:

    root/
      KEY/                  a virtual environment; complete when it has ready.json
      KEY/users/PID-TIME    a process that uses it
      library-DIGEST/       links to Penstock and what it needs (see `penstock.model.shelf`), first on every path
      locks/KEY             held (flock) while KEY is made or removed
      .gone-…               on its way out
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import signal
import sys
import sysconfig
from collections.abc import AsyncIterator, Collection
from functools import cached_property
from pathlib import Path

import msgspec
import psutil

from penstock.model.lock import parse_lock
from penstock.model.requirement import same_version, wheel_parts
from penstock.model.shelf import BuildError, Injected, injected, shelf, without_injected

__all__ = ["BASE", "BuildError", "Environment", "Environments"]

_FORMAT = 1
"""Raised when environments are made in another way, so that old ones are not used."""
_READY = "ready.json"
_FIRST, _LAST = "00-penstock.pth", "zz-penstock.pth"
"""Twice: before the lines of other `.pth` files are run, and again after they may have changed the path."""
_LOCK_PAUSE = 0.05
_LAST_WORDS = 2000


class Environment(msgspec.Struct, frozen=True):
    """An interpreter to run models with."""

    key: str
    """Empty: the node's own interpreter, for models that require nothing."""
    python: str
    """The interpreter's path."""


BASE = Environment("", sys.executable)


class _Ready(msgspec.Struct):
    """What `ready.json` says."""

    library: str
    """The shelf that the environment puts first."""


class Environments:
    """The environments under `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._locks: dict[str, asyncio.Lock] = {}
        self._user = f"{os.getpid()}-{psutil.Process().create_time():.2f}"

    @cached_property
    def _library(self) -> dict[str, Injected]:
        return injected()

    def key_of(self, lock: str) -> str:
        """The name of the environment that `lock` makes with this interpreter on this machine; empty for nothing."""
        lines = [line.strip() for line in lock.splitlines()]
        text = "\n".join(line for line in lines if line and not line.startswith("#"))
        if not text:
            return ""
        python = [platform.python_version(), sys.implementation.cache_tag, sysconfig.get_platform(), sys.prefix]
        parts = [str(_FORMAT), *python, str(Path(__file__).parents[1]), text]
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]

    def known(self, key: str) -> Environment | None:
        """The environment of that name if it is here, complete and up to date."""
        if not key:
            return BASE
        home = self._root / key
        try:
            ready = msgspec.json.decode((home / _READY).read_bytes(), type=_Ready)
        except (OSError, msgspec.MsgspecError):
            return None
        python = home / "bin" / "python"
        if not python.exists() or not Path(ready.library).is_dir() or ready.library != str(self._shelf()):
            return None
        return Environment(key, str(python))

    async def ensure(self, lock: str, wheels: Path | None = None, timeout: float = 600.0) -> Environment:
        """The environment for `lock` (a requirements file with hashes), made first if it is not here.

        `wheels`: a directory of wheel files to install from; when it has all that the lock names, nothing else is
        looked at. At most `timeout` seconds. However often it is asked for, also by other processes with the same
        root, it is made once. Raises `BuildError` with uv's last words; nothing is left behind then.
        """
        key = self.key_of(lock)
        if not key:
            return BASE
        needed = without_injected(lock, self._library)
        try:
            async with asyncio.timeout(timeout), self._alone(key):
                found = self.known(key)
                if found is None:
                    found = await self._make(key, needed, wheels)
                self._note_use(key)
                return found
        except TimeoutError:
            raise BuildError(
                f"the model's environment was not made within {timeout:g} s",
                remedy="bundle the wheels into the package (--bundle), or try again when the index is reachable",
            ) from None
        except OSError as error:
            raise BuildError(f"the model's environment cannot be made in {self._root}: {error}") from error

    async def keep(self, keys: Collection[str]) -> list[str]:
        """Remove all environments but these, and those that another living process uses. The names of the removed."""
        removed = []
        wanted = {*keys, ""}
        for path in sorted(self._root.iterdir()) if self._root.is_dir() else ():
            if path.name in wanted or len(path.name) != 32 or not path.is_dir():
                continue
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1.0), self._alone(path.name):
                    with contextlib.suppress(OSError):
                        (path / "users" / self._user).unlink()
                    if not _users(path):
                        self._put_aside(path)
                        self._lock_file(path.name).unlink(missing_ok=True)
                        removed.append(path.name)
        self._drop_libraries()
        await asyncio.to_thread(self._sweep)
        return removed

    def _drop_libraries(self) -> None:
        """Links for a library that no environment here was made for, of an earlier version for example."""
        used = {str(self._shelf())} if self._root.is_dir() else set()
        for ready in self._root.glob(f"*/{_READY}"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                used.add(msgspec.json.decode(ready.read_bytes(), type=_Ready).library)
        for path in self._root.glob("library-*"):
            if str(path) not in used:
                self._put_aside(path)

    # ---- making -----------------------------------------------------------------------------------------------------

    async def _make(self, key: str, needed: str, wheels: Path | None) -> Environment:
        home = self._root / key
        self._put_aside(home)  # half made by a process that was killed, or for another library
        await asyncio.to_thread(self._sweep)
        python = home / "bin" / "python"
        try:
            base = getattr(sys, "_base_executable", "") or sys.executable
            await self._uv("venv", "--no-project", "--python", base, str(home))
            if needed:
                requirements = home / "requirements.txt"
                requirements.write_text(needed)
                await self._uv(*_install(python, requirements, needed, wheels))
            library = self._shelf()
            packages = next((home / "lib").glob("python*/site-packages"))
            for name in (_FIRST, _LAST):
                (packages / name).write_text(f"import sys; sys.path.insert(0, {str(library)!r})\n")
            (home / "users").mkdir()
            (home / _READY).write_bytes(msgspec.json.encode(_Ready(str(library))))
        except BaseException:
            self._put_aside(home)
            await asyncio.shield(asyncio.to_thread(self._sweep))
            raise
        return Environment(key, str(python))

    def _shelf(self) -> Path:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return shelf(self._root, self._library.values())

    async def _uv(self, *arguments: str) -> None:
        """Run uv to its end. Raises `BuildError` with its last words."""
        from uv import find_uv_bin

        try:
            program = find_uv_bin()
        except FileNotFoundError as error:
            raise BuildError("the program uv is missing", remedy="install it: pip install uv") from error
        words = self._root / f".words-{os.urandom(6).hex()}"
        try:
            with words.open("wb") as out:
                status = await _run([program, *arguments], cwd=self._root, out=out.fileno())
            text = words.read_bytes()[-4 * _LAST_WORDS :].decode(errors="replace")
        finally:
            words.unlink(missing_ok=True)
        if status != 0:
            raise BuildError(
                f"the model's environment cannot be made: uv {arguments[0]} ended with status {status}:\n"
                + _shortened(text),
                remedy="check the model's requirements; bundle the wheels (--bundle) for nodes without an index",
            )

    # ---- one at a time ----------------------------------------------------------------------------------------------

    def _lock_file(self, key: str) -> Path:
        return self._root / "locks" / key

    @contextlib.asynccontextmanager
    async def _alone(self, key: str) -> AsyncIterator[None]:
        """No other task and no other process makes or removes this environment meanwhile."""
        async with self._locks.setdefault(key, asyncio.Lock()):
            self._lock_file(key).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            while (held := _try_lock(self._lock_file(key))) is None:
                await asyncio.sleep(_LOCK_PAUSE)
            try:
                yield
            finally:
                os.close(held)

    def _note_use(self, key: str) -> None:
        (self._root / key / "users" / self._user).touch()

    def _put_aside(self, path: Path) -> None:
        """Make a directory disappear at once; `_sweep` removes it."""
        with contextlib.suppress(FileNotFoundError):
            path.rename(self._root / f".gone-{path.name}-{os.urandom(4).hex()}")

    def _sweep(self) -> None:
        for path in self._root.glob(".gone-*"):
            shutil.rmtree(path, ignore_errors=True)


def _install(python: Path, requirements: Path, needed: str, wheels: Path | None) -> list[str]:
    """Exactly what the lock names, with the hashes that it names. Nothing is built here: build requirements have no
    hashes, and nodes have no compilers."""
    arguments = ["pip", "install", "--python", str(python), "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    if wheels is not None:
        arguments += ["--find-links", str(wheels)]
        if _complete(needed, wheels):
            arguments += ["--no-index", "--offline"]
    return [*arguments, "-r", str(requirements)]


def _complete(needed: str, wheels: Path) -> bool:
    """Whether all that the lock names is among the wheels."""
    bundled = [wheel_parts(path.name) for path in wheels.glob("*.whl")]
    return all(
        any(name == pin.name and same_version(version, pin.version) for name, version in bundled)
        for pin in parse_lock(needed)
    )


async def _run(command: list[str], *, cwd: Path, out: int) -> int:
    """The exit status. The process and what it started are killed and reaped when this is cancelled."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd, env=_variables(), process_group=0
    )
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _variables() -> dict[str, str]:
    """uv's environment variables."""
    dropped = ("PENSTOCK_", "VIRTUAL_ENV", "CONDA_", "PYTHON", "UV_PROJECT")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    kept.setdefault("UV_SYSTEM_CERTS", "true")  # what the machine trusts, its owner's mirror included
    return kept | {"UV_NO_PROGRESS": "1", "NO_COLOR": "1", "UV_PYTHON_DOWNLOADS": "never"}


def _shortened(text: str) -> str:
    """The end of what uv said."""
    lines = [line.rstrip() for line in text.strip().splitlines() if not line.startswith("Using ")]
    return "\n".join(f"  {line}" for line in "\n".join(lines)[-_LAST_WORDS:].splitlines())


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock; `None` while somebody else does."""
    held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(held).st_ino == os.stat(path).st_ino:
            return held  # else it was removed together with its environment just now
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(held)
        raise
    os.close(held)
    return None


def _users(home: Path) -> list[str]:
    """Living processes that use an environment."""
    living = []
    for name in os.listdir(home / "users") if (home / "users").is_dir() else ():
        pid, _, started = name.partition("-")
        with contextlib.suppress(psutil.Error, ValueError):
            if f"{psutil.Process(int(pid)).create_time():.2f}" == started:
                living.append(name)
    return living
