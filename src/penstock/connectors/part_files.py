"""Writing files that are whole or not there: temporary name, fsync, rename, fsync of the directory.

Where the records of `ndjson("out.ndjson")` or `files("out/")` end up:

- One executor, no checkpoints, a path that is not a directory: that one file, when the run ends.
- Otherwise the path is a directory of parts, `part-<executor>-<number>.<suffix>`; the suffix is the connector's. With
  checkpoints the number is the checkpoint that made the part visible; without, parts count up and one becomes visible
  every `roll` seconds.

A path that ends in `.gz` is written compressed, as it is read: each spill is a gzip member of its own.

A fresh run replaces the output of the run before it, as writing to a file does. Hidden files are being written
(`.part-….tmp`) or wait for their checkpoint (`.part-….ready`); those that a killed run left are removed by the next.

Exactly once: `prepare` fsyncs what was written under a `.ready` name, `commit` renames it; a rename that was done
already is no work. After a restore, the parts of the restored checkpoint are completed and all later ones removed,
visible or not, because the replayed input brings their records again. `prepare` names all parts that no commit has
reached yet, so a checkpoint that was given up loses nothing.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from penstock.errors import ConnectorError
from penstock.flow.connector import ConnectorContext, Writer

BUFFER_BYTES = 256 * 1024
_PART = re.compile(r"^\.?part-(?P<index>\d{5})-(?P<number>\d{8})[^/]*?(?P<state>\.tmp|\.ready)?$")
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "the file is too large"}


class PartFiles(Writer):
    """One executor's end of a file sink."""

    transactional: ClassVar[bool] = True

    def __init__(
        self,
        path: str,
        ctx: ConnectorContext,
        encode: Callable[[list[Any]], bytes],
        *,
        suffix: str = ".txt",
        roll: float = 60.0,
    ) -> None:
        self.ctx, self.encode, self.roll = ctx, encode, roll
        self.single = not ctx.checkpointed and ctx.executors == 1 and not path.endswith("/") and not os.path.isdir(path)
        self.path = path
        self.directory = os.path.dirname(path) or "." if self.single else path.rstrip("/") or "/"
        self.compressed = path.rstrip("/").endswith(".gz")
        self.suffix = f"{suffix}.gz" if self.compressed else suffix
        self._file: int | None = None
        self._name = ""
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._number = 1
        self._rolled_at = ctx.clock.monotonic()
        self._ready: list[str] = []
        """Parts prepared and not yet committed, by their visible names."""
        self._clean = False
        if self.single:
            self._refuse_devices()
        with self._naming_errors():
            os.makedirs(self.directory, exist_ok=True)

    def _refuse_devices(self) -> None:
        """A rename would put a plain file where the device (or pipe, or socket) is. Raises `ConnectorError`."""
        with self._naming_errors(), contextlib.suppress(FileNotFoundError):
            mode = os.stat(self.path).st_mode
            if not stat.S_ISREG(mode):
                raise ConnectorError(
                    f"{self.path!r} is not a plain file, and a result is written to a new file that takes its place",
                    remedy="name a plain file, or use ps.stdout() and redirect it",
                )

    # ---- records --------------------------------------------------------------------------------------------------

    def write(self, records: list[Any]) -> None:
        """Append records to the part being written."""
        data = self.encode(records)
        self._buffer.append(data)
        self._buffered += len(data)
        if self._buffered >= BUFFER_BYTES:
            self._spill()

    def _spill(self) -> None:
        if not self._buffer:
            return
        if self._file is None:
            self._begin()
        gathered = b"".join(self._buffer)
        self._buffer, self._buffered = [], 0
        data = memoryview(gzip.compress(gathered, compresslevel=6, mtime=0) if self.compressed else gathered)
        with self._naming_errors():
            while data:
                data = data[os.write(self._descriptor(), data) :]

    def _begin(self) -> None:
        self._start_fresh()
        self._name = os.path.basename(self.path) if self.single else self._part_name(self._number)
        with self._naming_errors():
            self._file = os.open(self._hidden("tmp"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)

    def _descriptor(self) -> int:
        assert self._file is not None
        return self._file

    def _part_name(self, number: int) -> str:
        return f"part-{self.ctx.index:05d}-{number:08d}{self.suffix}"

    def _hidden(self, state: str, name: str | None = None) -> str:
        return os.path.join(self.directory, f".{name or self._name}.{state}")

    def _sync(self, state: str) -> bool:
        """Make the part being written durable and give it its state's name; `False` when there is nothing."""
        self._spill()
        if self._file is None:
            return False
        with self._naming_errors():
            os.fsync(self._file)
            os.close(self._file)
            self._file = None
            target = os.path.join(self.directory, self._name) if state == "" else self._hidden(state)
            os.rename(self._hidden("tmp"), target)
            sync_directory(self.directory)
        self._number += 1
        return True

    # ---- without checkpoints --------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Without checkpoints, in a directory: show what has been written once `roll` seconds have passed."""
        if self.ctx.checkpointed:
            return
        if not self.single and self.ctx.clock.monotonic() - self._rolled_at >= self.roll:
            self._sync("")
            self._rolled_at = self.ctx.clock.monotonic()

    # ---- with checkpoints -----------------------------------------------------------------------------------------

    def prepare(self, checkpoint: int) -> Any:
        """Make what was written durable under a hidden name. The value holds the names of all parts not committed."""
        self._start_fresh()
        if self._file is not None or self._buffer:
            self._spill()
            with self._naming_errors():
                renamed = self._part_name(checkpoint)
                os.rename(self._hidden("tmp"), self._hidden("tmp", renamed))
            self._name = renamed
            self._sync("ready")
            self._ready.append(self._name)
        self._number = checkpoint + 1
        return {"checkpoint": checkpoint, "parts": list(self._ready)}

    def commit(self, pending: Any) -> None:
        """Show the parts; those shown already stay as they are."""
        for name in pending["parts"]:
            self._show(name)
        if pending["parts"]:
            with self._naming_errors():
                sync_directory(self.directory)
        shown = set(pending["parts"])
        self._ready = [name for name in self._ready if name not in shown]

    def _show(self, name: str) -> None:
        target = os.path.join(self.directory, name)
        try:
            os.rename(self._hidden("ready", name), target)
        except FileNotFoundError:
            if not os.path.exists(target):
                raise ConnectorError(
                    f"{target!r} belongs to the restored checkpoint, but neither it nor its hidden form exists",
                    remedy="were files removed from the output directory? start with a new checkpoint directory",
                ) from None
        except OSError as error:
            raise self._named(error) from error

    def recover(self, pendings: Sequence[Any]) -> None:
        """Complete the restored checkpoint's parts and remove everything later."""
        for pending in pendings:
            self.commit(pending)
        restored = max((pending["checkpoint"] for pending in pendings), default=None)
        self._discard(restored)
        self._number = (restored or 0) + 1
        self._clean = True

    def _start_fresh(self) -> None:
        """Once, before the first effect of a run that was not restored: remove what earlier runs left."""
        if self._clean:
            return
        self._clean = True
        if self.single:
            with self._naming_errors(), contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.directory, f".{os.path.basename(self.path)}.tmp"))
            return
        self._discard(0)

    def _discard(self, after: int | None) -> None:
        """Remove this executor's parts of checkpoints later than `after` (and those of executors that no longer
        exist). `None`: only what is half-written, because nothing is known about the restored checkpoint."""
        with self._naming_errors():
            for name in os.listdir(self.directory):
                match = _PART.match(name)
                if match is None or not self._mine(int(match["index"])):
                    continue
                later = after is not None and int(match["number"]) > after
                if match["state"] == ".tmp" or later:
                    os.unlink(os.path.join(self.directory, name))
            sync_directory(self.directory)

    def _mine(self, index: int) -> bool:
        return index == self.ctx.index or (self.ctx.index == 0 and index >= self.ctx.executors)

    # ---- the end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Show everything. A single file without records is created empty, so that the run has its output."""
        self._start_fresh()
        if self.single and self._file is None:
            self._begin()
        for name in self._ready:
            self._show(name)
        self._ready = []
        self._sync("")

    def abort(self) -> None:
        """Remove what is half-written; prepared parts stay for `recover`."""
        self._buffer, self._buffered = [], 0
        if self._file is not None:
            os.close(self._file)
            self._file = None
            with contextlib.suppress(OSError):
                os.unlink(self._hidden("tmp"))

    @contextlib.contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._named(error) from error

    def _named(self, error: OSError) -> ConnectorError:
        why = _FULL.get(error.errno or 0)
        if why is not None:
            return ConnectorError(
                f"cannot write below {self.directory!r}: {why} ({error.strerror}); nothing half-written was shown",
                remedy="make room, then start the run again: with checkpoints it continues where it was",
            )
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            return ConnectorError(
                f"{self.directory!r} is a file, but a run with checkpoints or several executors writes a directory",
                remedy="remove the file, or write to a new path",
            )
        return ConnectorError(f"cannot write {self.path!r}: {error.strerror}", remedy="check the path and permissions")


def sync_directory(directory: str) -> None:
    """Make renames in a directory survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
