"""A node's journal on disk: what the node must still know after a power cut.

One file: a line with the format and the checksum of the rest, then the journal as JSON. It is only ever replaced as a
whole (temporary file, fsync, rename, fsync of the directory), so a crash leaves the old one or the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from pathlib import Path

import msgspec

from penstock.cluster.transaction.records import Journal
from penstock.errors import PenstockError

_FORMAT = b"penstock-journal-1"


class JournalError(PenstockError):
    """The journal cannot be read or written. After a write the old one is surely in place."""


class JournalInDoubt(JournalError):
    """Nobody knows whether the old or the new journal would be there after a power cut: the node must stop."""


class LocalJournal:
    """The journal in the file `path`; its directory is made when needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._one_at_a_time = threading.Lock()
        self._writing: asyncio.Future[None] | None = None

    def load(self) -> Journal | None:
        """The journal; `None` when there is none. Raises `JournalError` when it cannot be read or is damaged."""
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise JournalError(
                f"the journal {self.path} cannot be read: {_reason(error)}",
                remedy="let the user that runs the node own its data directory",
            ) from error
        head, _, body = content.partition(b"\n")
        form, _, checksum = head.partition(b" ")
        if form != _FORMAT and form.startswith(b"penstock-journal-"):
            raise JournalError(
                f"the journal {self.path} is of another version of Penstock ({form.decode(errors='replace')})",
                remedy="start this node with the version that wrote it",
            )
        if form != _FORMAT or checksum != _checksum(body):
            raise self._damaged("its checksum is wrong")
        try:
            return msgspec.json.decode(body, type=Journal)
        except msgspec.DecodeError as error:
            raise self._damaged(str(error)) from error

    async def write(self, journal: Journal) -> None:
        """Replace the journal; it is on the disk when this returns. Raises `JournalError`: the old one is in place;
        `JournalInDoubt`: see there. A cancelled write goes on by itself; the next one waits for it."""
        self._writing = asyncio.get_running_loop().run_in_executor(None, self.replace, journal)
        await asyncio.shield(self._writing)

    async def idle(self, seconds: float) -> None:
        """Until the latest write has ended, also when the task that asked for it was cancelled; at most `seconds`."""
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=seconds)
            if self._writing.done() and not self._writing.cancelled():
                self._writing.exception()  # so that it does not count as never retrieved

    def replace(self, journal: Journal) -> None:
        """What `write` does, in the calling thread."""
        body = msgspec.json.encode(journal)
        with self._one_at_a_time:
            try:
                self._write_temporary(b"%s %s\n%s" % (_FORMAT, _checksum(body), body))
                os.rename(self._temporary, self.path)
            except OSError as error:
                with contextlib.suppress(OSError):
                    self._temporary.unlink(missing_ok=True)
                raise JournalError(
                    f"the journal {self.path} cannot be written: {_reason(error)}",
                    remedy="make room on that disk, and let the user that runs the node own its data directory",
                ) from error
            try:
                _sync_directory(self.path.parent)
            except OSError as error:
                raise JournalInDoubt(
                    f"the disk did not confirm the journal {self.path}: {_reason(error)}",
                    remedy="check that disk; then start the node again",
                ) from error

    @property
    def _temporary(self) -> Path:
        return self.path.with_name(self.path.name + ".new")

    def _write_temporary(self, content: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        number = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(number, "wb", buffering=0) as file:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())

    def _damaged(self, why: str) -> JournalError:
        return JournalError(
            f"the journal {self.path} is damaged: {why}",
            remedy=f"move {self.path} away and start again: the node then takes everything from the cluster. "
            "Do not do so when Redis has lost its memory and this journal is the newest",
        )


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _sync_directory(path: Path) -> None:
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)
