"""Following a file that grows, as `tail -F` does: it may be cut, or renamed and replaced (log rotation).

A last line without line end is kept until it is complete, or until its file is replaced. Offsets carry the file's
inode, so that a restart finds a file that was renamed meanwhile, finishes it, and then goes on with the new one.
A file that is cut and grows past the old position between two looks cannot be told from one that only grew.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any

from penstock.connectors.block_reader import BlockReader
from penstock.connectors.byte_stream import ByteStream
from penstock.errors import ConnectorError
from penstock.flow.connector import ConnectorContext

POLL_SECONDS = 0.1


def resume_followed(path: str, offset: Any | None) -> tuple[str, Any | None]:
    """Which file to open to continue after `offset`, and from where: the same file wherever it was renamed to within
    its directory; the start of the present one when it is gone or was cut."""
    if offset is None:
        return path, None
    directory = os.path.dirname(path) or "."
    candidates = [path]
    if os.path.isdir(directory):
        candidates += sorted(os.path.join(directory, name) for name in os.listdir(directory))
    for candidate in candidates:
        try:
            found = os.stat(candidate)
        except OSError:
            continue
        if found.st_ino == offset["inode"] and found.st_size >= offset["byte"]:
            return candidate, offset
    return path, None


class FollowedFile(BlockReader):
    """A block reader that waits at the end of its file. Put it before the format among the base classes."""

    followed_path: str

    def __init__(self, path: str, offset: Any | None, ctx: ConnectorContext, *format_arguments: Any) -> None:
        super().__init__(path, offset, ctx, *format_arguments)
        self._left = False
        self._waiting = False

    @abstractmethod
    def open_again(self) -> ByteStream:
        """The file that has the path now."""

    def keeps_partial(self) -> bool:
        """A line may still grow, unless its file has been left behind."""
        return not self._left

    def read(self, limit: int) -> list[Any]:
        """Up to `limit` records, `[]` when the file has no more complete line now."""
        self._waiting = False
        return super().read(limit)

    def at_end(self) -> list[Any]:
        """Nothing complete is left in this file: see whether it was cut or replaced."""
        if not self._left:
            self._left = self._was_left()
            if self._left and self._carry:
                return []  # come back at once for the line that will never be completed
        if self._left and not self._carry:
            try:
                self.switch(self.open_again())
            except ConnectorError:
                self._waiting = True  # between the rename and the new file
                return []
            self._left = False
            return []
        self._waiting = True
        return []

    def _was_left(self) -> bool:
        try:
            found = os.stat(self.followed_path)
        except FileNotFoundError:
            return False
        return found.st_ino != self.stream.inode() or found.st_size < self.stream.position

    def next_at(self) -> float | None:
        """Look again a little later."""
        return self.ctx.clock.monotonic() + (POLL_SECONDS if self._waiting else 0.0)

    def offset(self) -> Any:
        """The position, and which file it is in."""
        return {**super().offset(), "inode": self.stream.inode()}

    def progress(self) -> float | None:
        """A followed file has no end."""
        return None
