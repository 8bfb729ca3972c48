"""Where durable checkpoints live: any file store that fsspec reaches.

{url}/{flow}/chk-00000012/0.1.part       one executor's part (stage 0, executor 1)
{url}/{flow}/chk-00000012/manifest.json  written last: without it the checkpoint does not exist
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import fsspec
import xxhash

from penstock.errors import CheckpointError

_NAME = re.compile(r"chk-(\d+)$")
_MAGIC = b"PSC1"


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
            raise CheckpointError(f"checkpoint part {path} is damaged", remedy=f"remove {self._folder(checkpoint)}")
        return data

    def write_manifest(self, checkpoint: int, manifest: dict[str, Any]) -> None:
        """Complete the checkpoint."""
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
                    self._fs.rm(self._folder(number), recursive=True)

    def _manifest(self, path: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._fs.cat_file(path))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"checkpoint manifest {path} cannot be read: {error}") from error
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
                f"checkpoint file {path} cannot be written: {error}", remedy="free space or choose another --checkpoint"
            ) from error


def _protocols(fs: Any) -> tuple[str, ...]:
    protocol = fs.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _write_local(path: Path, data: bytes) -> None:
    """Temp + fsync + rename + fsync of the directory: the file is there whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(path.name + ".tmp")
    with temp.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temp.rename(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
