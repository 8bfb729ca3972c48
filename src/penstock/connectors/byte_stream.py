"""Bytes of one local file from a position on, plain or gzip, with errors that name the file."""

from __future__ import annotations

import gzip
import io
import os
import zlib

from penstock.connectors.paths import missing
from penstock.errors import ConnectorError


class ByteStream:
    """An open file. `position` counts uncompressed bytes."""

    def __init__(self, path: str, position: int = 0) -> None:
        self.path = path
        self.compressed = path.endswith(".gz")
        self.position = position
        try:
            if os.path.isdir(path):
                raise ConnectorError(f"{path!r} is a directory, not a file", remedy=f"name its files: {path}/*")
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by `close`
        except FileNotFoundError:
            raise missing(path) from None
        except OSError as error:
            raise ConnectorError(f"cannot open {path!r}: {error.strerror}", remedy="check its permissions") from error
        self._stream: gzip.GzipFile | io.FileIO = gzip.GzipFile(fileobj=self._file) if self.compressed else self._file
        if position:
            try:
                self._seek(position)
            except BaseException:
                self.close()
                raise

    def _seek(self, position: int) -> None:
        end = self._decompressed(position) if self.compressed else min(position, os.fstat(self._file.fileno()).st_size)
        if end < position:
            raise ConnectorError(
                f"{self.path!r} ends at byte {end}, before the position {position} to continue from",
                remedy="the file was replaced or cut since it was read; start without the old checkpoint",
            )
        if not self.compressed:
            self._stream.seek(position)

    def _decompressed(self, position: int) -> int:
        """Read up to `position`; gzip has no shorter way."""
        done = 0
        while done < position:
            data = self._read(min(2**20, position - done))
            if not data:
                break
            done += len(data)
        return done

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; empty at the end of the file. Raises `ConnectorError`."""
        data = self._read(size)
        self.position += len(data)
        return data

    def _read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ConnectorError(
                f"{self.path!r} is not a complete gzip file (after {self.position} uncompressed bytes): {error}",
                remedy="fetch the file again, or give it its proper name if it is not compressed",
            ) from error
        except OSError as error:
            raise ConnectorError(f"cannot read {self.path!r}: {error.strerror or error}") from error

    def size(self) -> int:
        """Bytes of the file as it is stored."""
        return os.fstat(self._file.fileno()).st_size

    def stored_position(self) -> int:
        """How much of `size` has been read."""
        return self._file.tell() if self.compressed else self.position

    def inode(self) -> int:
        """What stays the same when the file is renamed."""
        return os.fstat(self._file.fileno()).st_ino

    def close(self) -> None:
        """Close the file."""
        if self.compressed:
            self._stream.close()
        self._file.close()
