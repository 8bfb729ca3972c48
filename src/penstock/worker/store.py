"""Where durable checkpoints live: any file store that fsspec reaches.

{url}/{flow}/chk-00000012/0.1.part       one executor's part (stage 0, executor 1)
{url}/{flow}/chk-00000012/manifest.json  written last: without it the checkpoint does not exist

One run at a time works in `{url}/{flow}`. On this machine's file system the run holds a lock on `run.lock`, and its
workers share one on `workers.lock`, so that a run that is started again waits until the workers of the killed one are
gone. Elsewhere there are no locks: `owner` names the run that came last, and an earlier one finds out and stops.

In a cluster nobody claims the place: the leader's term, checked in Redis, says whose manifest counts.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import time
import uuid
from pathlib import Path
from typing import Any

import fsspec
import xxhash

from penstock.errors import CheckpointError

_NAME = re.compile(r"chk-(\d+)$")
_MAGIC = b"PSC1"
ORPHAN_DEADLINE = 15.0
"""Seconds that a run waits for the workers of a killed run: they end by themselves."""
_BUSY = (errno.EWOULDBLOCK, errno.EACCES)


class CheckpointStore:
    """Parts and manifests of one flow under one URL. Every method may raise `CheckpointError`."""

    def __init__(self, url: str, flow: str) -> None:
        self._url = url
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError, OSError) as error:
            raise CheckpointError(
                f"no file store for {url!r}: {error}", remedy="give a directory or an fsspec URL"
            ) from error
        self._local = "file" in _protocols(self._fs)
        self._root = f"{root.rstrip('/')}/{flow}"
        self._locks: list[int] = []
        self._owner = b""

    def claim(self) -> None:
        """Be the run that works here, until `close`; waits a bounded time for workers of a killed run. Raises
        `CheckpointError` when another run is at work."""
        if not self._local:
            self._owner = uuid.uuid4().hex.encode()
            self._write(f"{self._root}/owner", self._owner)
            return
        if not self._lock("run.lock", fcntl.LOCK_EX):
            raise CheckpointError(
                f"the checkpoint directory {self._root} is in use by another run",
                remedy="wait for that run or stop it, or give this one a directory of its own",
            )
        deadline = time.monotonic() + ORPHAN_DEADLINE
        while not self._lock("workers.lock", fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"workers of an earlier run still use the checkpoint directory {self._root}",
                    remedy="end them: they are `python -m penstock.worker`",
                )
            time.sleep(0.05)
        os.close(self._locks.pop())

    def join(self) -> None:
        """Be a worker of the run that works here, until `close`. Where no run has claimed the place there is nothing to
        join, and nothing is written."""
        if self._local and os.path.exists(f"{self._root}/run.lock"):
            self._lock("workers.lock", fcntl.LOCK_SH)

    def close(self) -> None:
        """Give up the locks."""
        while self._locks:
            os.close(self._locks.pop())

    def _read_owner(self) -> bytes:
        try:
            return bytes(self._fs.cat_file(f"{self._root}/owner"))
        except OSError as error:
            raise CheckpointError(f"{self._root}/owner cannot be read: {error}") from error

    def _lock(self, name: str, kind: int) -> bool:
        """Try to lock a file; `False` when somebody else holds it. A file system without locks locks nothing."""
        try:
            os.makedirs(self._root, exist_ok=True)
            descriptor = os.open(f"{self._root}/{name}", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise CheckpointError(f"checkpoint directory {self._root} cannot be written: {error}") from error
        self._locks.append(descriptor)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                os.close(self._locks.pop())
                return False
        return True

    def write_part(self, checkpoint: int, name: str, data: bytes) -> int:
        """Make one executor's part durable; the number of bytes written."""
        framed = _MAGIC + xxhash.xxh3_64_digest(data) + data
        self._write(f"{self._folder(checkpoint)}/{name}.part", framed)
        return len(framed)

    def read_part(self, checkpoint: int, name: str) -> bytes:
        """A part as it was written; its checksum is verified."""
        path = f"{self._folder(checkpoint)}/{name}.part"
        try:
            framed = self._fs.cat_file(path)
        except OSError as error:
            raise CheckpointError(f"checkpoint part {path} cannot be read: {error}") from error
        data = bytes(framed[12:])
        if framed[:4] != _MAGIC or xxhash.xxh3_64_digest(data) != framed[4:12]:
            raise Damaged(
                f"checkpoint part {path} is damaged",
                remedy=f"remove {self._folder(checkpoint)} to go on from the checkpoint before it",
            )
        return data

    def parts(self, checkpoint: int) -> dict[str, int]:
        """The parts that are here: name -> size in bytes, as `write_part` told it."""
        folder = self._folder(checkpoint)
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(folder, detail=True)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CheckpointError(f"checkpoint {folder} cannot be read: {error}") from error
        names = ((str(entry["name"]).rpartition("/")[2], entry.get("size")) for entry in found)
        return {name.removesuffix(".part"): int(size or 0) for name, size in names if name.endswith(".part")}

    def write_manifest(self, checkpoint: int, manifest: dict[str, Any]) -> None:
        """Complete the checkpoint. Raises `CheckpointError` also when another run has taken over."""
        if self._owner and self._read_owner() != self._owner:
            raise TakenOver(
                f"another run has taken over the checkpoints in {self._url}", remedy="let one run at a time use them"
            )
        self._write(f"{self._folder(checkpoint)}/manifest.json", json.dumps(manifest, indent=1).encode())

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """Number and manifest of the last complete checkpoint; `None` when there is none."""
        for number in reversed(self._numbers()):
            path = f"{self._folder(number)}/manifest.json"
            if self._fs.exists(path):
                return number, self._manifest(path)
        return None

    def manifest(self, checkpoint: int) -> dict[str, Any]:
        """The manifest of a complete checkpoint."""
        return self._manifest(f"{self._folder(checkpoint)}/manifest.json")

    def next_number(self) -> int:
        """A number greater than every checkpoint that was ever begun here."""
        return max(self._numbers(), default=0) + 1

    def prune(self, keep: int) -> None:
        """Remove all but the last `keep` complete checkpoints, and what was begun before them and never completed."""
        complete = [n for n in self._numbers() if self._fs.exists(f"{self._folder(n)}/manifest.json")]
        if len(complete) >= keep:
            for number in self._numbers():
                if number < complete[-keep]:
                    self.discard(number)

    def discard(self, checkpoint: int) -> None:
        """Remove a checkpoint; one that is not there is no error."""
        folder = self._folder(checkpoint)
        try:
            self._fs.rm(folder, recursive=True)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise CheckpointError(f"checkpoint {folder} cannot be removed: {error}") from error

    def _manifest(self, path: str) -> dict[str, Any]:
        try:
            found = json.loads(self._fs.cat_file(path))
        except ValueError as error:
            raise _damaged(path, str(error)) from error
        except OSError as error:
            raise CheckpointError(f"checkpoint manifest {path} cannot be read: {error}") from error
        if not isinstance(found, dict) or not {"steps", "parts"} <= found.keys():
            raise _damaged(path, "it is not a manifest")
        return found

    def _folder(self, checkpoint: int) -> str:
        return f"{self._root}/chk-{checkpoint:08d}"

    def _numbers(self) -> list[int]:
        self._fs.invalidate_cache()
        try:
            names = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"checkpoint directory {self._root} cannot be read: {error}") from error
        return sorted(int(match[1]) for name in names if (match := _NAME.search(str(name).rstrip("/"))))

    def _write(self, path: str, data: bytes) -> None:
        try:
            if self._local:
                _write_local(Path(path), data)
            else:
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._fs.pipe_file(path, data)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint file {path} cannot be written: {error}",
                remedy="free space or choose another --checkpoint",
            ) from error


class TakenOver(CheckpointError):
    """Another run works with these checkpoints now."""


class Damaged(CheckpointError):
    """What is there cannot be what was written: trying again does not help."""


def _damaged(path: str, why: str) -> CheckpointError:
    folder = path.rpartition("/")[0]
    return Damaged(
        f"checkpoint manifest {path} cannot be read: {why}",
        remedy=f"remove {folder} to go on from the checkpoint before it",
    )


def _protocols(fs: Any) -> tuple[str, ...]:
    protocol = fs.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _write_local(path: Path, data: bytes) -> None:
    """Temp + fsync + rename + fsync of the directory: the file is there whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(path.name + ".tmp")
    try:
        with temp.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temp.rename(path)
    except OSError:
        temp.unlink(missing_ok=True)  # above all when the disk is full
        raise
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
