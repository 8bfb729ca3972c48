"""From the records of an input to the pieces that are sent. Pure; drivers make it wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from penstock.client.conversation import Body
from penstock.errors import UsageError

CHUNK_RECORDS = 5000
"""A piece holds at most so many records."""
CHUNK_BYTES = 2**20
"""A piece is complete as soon as it holds so many bytes."""
LINGER = 0.2
"""A record of a slow input waits at most about so many seconds for others to share its request."""


class Feed:
    """What has been read from the input and not been sent yet: one complete piece, and the beginning of the next.

    `linger` None: a piece is complete when it is full, so that equal records always make equal pieces.
    """

    def __init__(self, clock: Callable[[], float], linger: float | None = LINGER) -> None:
        self._clock, self._linger = clock, linger
        self._encoder = msgspec.json.Encoder()
        self._complete: list[Body] = []
        self._lines = bytearray()
        self._records = self._number = 0
        self._since = 0.0
        self.ended = False
        """The input has no more, or is not to be read any further."""
        self.broken = False
        """It ended by an error."""

    @property
    def full(self) -> bool:
        """Whether no more is to be read until something is taken."""
        return bool(self._complete)

    def encode(self, record: Any) -> bytes:
        """A record as a line. Raises `UsageError` for a record that JSON cannot hold."""
        self._number += 1
        try:
            return self._encoder.encode(record) + b"\n"
        except (TypeError, ValueError, msgspec.EncodeError) as error:
            raise UsageError(f"record {self._number} cannot be sent as JSON: {error}") from error

    def add(self, line: bytes) -> None:
        """A line of NDJSON."""
        if self._lines and len(self._lines) + len(line) > CHUNK_BYTES:
            self._cut()
        if not self._lines:
            self._since = self._clock()
        self._lines += line
        self._records += 1
        if self._records >= CHUNK_RECORDS or len(self._lines) >= CHUNK_BYTES:
            self._cut()

    def add_body(self, content: bytes) -> None:
        """Whole lines that make one piece."""
        if content.strip():
            self._complete.append(Body(content, content.count(b"\n") + (not content.endswith(b"\n"))))

    def end(self, *, broken: bool = False) -> None:
        """There is no more. What a broken input began is not sent."""
        self.ended, self.broken = True, self.broken or broken
        if not broken:
            self._cut()

    def take(self) -> Body | None:
        """The next piece, once there is one."""
        if not self._complete and self._lines and self.due is not None and self._clock() >= self.due:
            self._cut()
        return self._complete.pop(0) if self._complete else None

    @property
    def due(self) -> float | None:
        """When the piece that has begun is sent, even if it is not full."""
        if self._linger is None or not self._lines:
            return None
        return self._since + self._linger

    def _cut(self) -> None:
        if self._lines:
            self._complete.append(Body(bytes(self._lines), self._records))
            self._lines.clear()
            self._records = 0
