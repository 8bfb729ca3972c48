"""Disk work of a node: in threads that surely end, durable before it is said to be done, refusals explained.

A file or directory that counts is written elsewhere first, fsynced, and renamed to its place: it is there whole or not
at all, also after a kill or a power cut.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from penstock.errors import ClusterError

T = TypeVar("T")

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LINK = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES)


class LibraryError(ClusterError):
    """The local-file library of this node cannot do what it was asked for."""


class DiskError(LibraryError):
    """The disk refuses: it is full, read-only, broken, or belongs to somebody else."""


async def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread. When the caller is cancelled, the cancellation goes on only after the thread has ended:
    nothing is changed on the disk afterwards."""
    # A future of the executor, not a task: `asyncio.run` cancels all tasks at its end, and would not wait for it.
    future = asyncio.get_running_loop().run_in_executor(None, work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        future.exception()
        raise cancelled
    return future.result()


async def on_disk(path: Path, work: Callable[[], T], *, needed: int | None = None) -> T:
    """`in_thread`, with what the operating system refuses as `DiskError`; see `explained`."""
    with explained(path, needed):
        return await in_thread(work)


@contextmanager
def explained(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an `OSError` at `path` into `DiskError`. `needed`: bytes that are to be written there."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path, needed) from error


def disk_error(error: OSError, path: Path, needed: int | None = None) -> DiskError:
    """What the operating system said about `path`, for people."""
    if error.errno in _FULL:
        return full(path, needed)
    where = error.filename if isinstance(error.filename, str) else path
    return DiskError(
        f"the disk refuses {where}: {error.strerror or error}",
        remedy="the node's data directory has to be on a sound disk, writable for the user that runs the node",
    )


def full(path: Path, needed: int | None) -> DiskError:
    """There is no room for `needed` bytes at `path`."""
    wanted = "" if needed is None else f": {needed} bytes are needed, {free_space(path)} are free"
    return DiskError(
        f"the disk is full at {path}{wanted}", remedy="free space there, or give the node another data directory"
    )


def free_space(path: Path) -> int:
    """Bytes that can be written at `path`, which need not exist yet; 0 when nobody knows."""
    for place in (path, *path.parents):
        try:
            found = os.statvfs(place)
        except OSError:
            continue
        return found.f_bavail * found.f_frsize
    return 0


def make_directory(path: Path) -> None:
    """A directory for this user alone, durable; its parent has to be there. It may exist."""
    path.mkdir(mode=0o700, exist_ok=True)
    path.chmod(0o700)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(source: Path, target: Path) -> None:
    """Rename, durably. A directory must not exist at `target`; a file is replaced."""
    os.rename(source, target)
    sync_directory(target.parent)
    if source.parent != target.parent:
        sync_directory(source.parent)


def remove(path: Path) -> None:
    """Remove a file or a directory with everything in it; nothing there is no error. It does not follow links."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        pass


def empty(folder: Path) -> None:
    """Remove everything in a directory."""
    for entry in list(folder.iterdir()):
        remove(entry)


def link(source: Path, target: Path) -> bool:
    """Give a file that nobody changes a second name, or copy it where links are not possible; durable once the
    directory of `target` is. `False`: there is no such file."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return _copy(source, target)
    return True


def _copy(source: Path, target: Path) -> bool:
    try:
        with source.open("rb") as reading, target.open("xb") as writing:
            shutil.copyfileobj(reading, writing, 2**20)
            writing.flush()
            os.fsync(writing.fileno())
    except FileNotFoundError:
        return False
    return True


def sha256(path: Path) -> str:
    """The digest of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Part:
    """A file that is being written, and the digest of what is in it so far. Its methods run in threads, one at a
    time; `close` in the end, whatever happened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._hash = hashlib.sha256()
        self._descriptor = -1

    def open(self) -> None:
        """Begin with an empty file."""
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        """Append."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._hash.update(data)
        self.size += len(data)

    def sync(self) -> None:
        """Make the content durable (the name is, when the directory is)."""
        os.fsync(self._descriptor)

    def digest(self) -> str:
        """SHA-256 of what was written, as hex digits."""
        return self._hash.hexdigest()

    def close(self) -> None:
        """Let go of the file."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
