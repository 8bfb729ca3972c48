"""`stdout`: one line per record on standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from penstock.connectors.json_lines import encode_lines, text_lines
from penstock.errors import ConnectorError, UsageError
from penstock.flow.connector import ConnectorContext, Sink, Writer

Format = Literal["text", "json"]


@dataclass(frozen=True)
class Stdout(Sink):
    """Made by `stdout`."""

    format: Format = "text"

    def open(self, ctx: ConnectorContext) -> Writer:
        """A writer to this process's standard output."""
        return StdoutWriter(self.format)

    def describe(self) -> str:
        """The format."""
        return f"stdout ({self.format})"


def stdout(format: Format = "text") -> Stdout:
    """Print records, whole lines at a time, so that executors do not cut into each other's lines.

    `"text"` prints text as it is and anything else as JSON; `"json"` prints text as JSON, too. With checkpoints,
    records may be printed again after a restart (at least once). Raises `UsageError` for another format.
    """
    if format not in ("text", "json"):
        raise UsageError(f"stdout(format={format!r}): 'text' or 'json' was expected")
    return Stdout(format)


READER_LEFT = "standard output was closed by its reader"
"""The message of the error when, for example, `head` has seen enough."""
PIPE_BYTES = 4096
"""POSIX keeps writes of up to this size in one piece when several processes write to one pipe (PIPE_BUF on Linux)."""


def whole_lines(data: bytes) -> Iterator[bytes]:
    """The data in pieces that end at a line end, each as long as a pipe keeps in one piece where lines are shorter."""
    start = 0
    while start < len(data):
        end = data.rfind(b"\n", start, start + PIPE_BYTES) + 1 or data.find(b"\n", start) + 1 or len(data)
        yield data[start:end]
        start = end


class StdoutWriter(Writer):
    """Writes through `sys.stdout`, so that redirecting it works."""

    def __init__(self, format: Format) -> None:
        self._encode = text_lines if format == "text" else encode_lines

    def write(self, records: list[Any]) -> None:
        """Print and flush. Raises `ConnectorError` when nobody reads the output any more, or the disk is full."""
        data = self._encode(records)
        try:
            buffer = getattr(sys.stdout, "buffer", None)
            if buffer is None:
                sys.stdout.write(data.decode("utf-8"))
                sys.stdout.flush()
            else:
                sys.stdout.flush()
                for lines in whole_lines(data):
                    buffer.write(lines)
                    buffer.flush()
        except BrokenPipeError as error:
            raise ConnectorError(READER_LEFT) from error
        except OSError as error:
            raise ConnectorError(f"cannot write to standard output: {error.strerror}") from error
