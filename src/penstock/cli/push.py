"""`penstock push`: send records to a source of a model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.cli.connection import DEFAULT_URL, Token, Url, call
from penstock.cli.output import Json, error_console, print_json
from penstock.errors import PenstockError, UsageError

PIECE = 256 * 2**10
"""Bytes that one request carries at most, unless a single line is longer."""
LONGEST = 64 * 2**20
"""Bytes of a line. No node takes a record of this size, and a file without line ends must not fill the memory."""


def push(
    stream: Annotated[str, typer.Argument(help="MODEL/SOURCE or GROUP/MODEL/SOURCE.", show_default=False)],
    file: Annotated[str, typer.Argument(help="NDJSON: one JSON value per line; - is standard input.")] = "-",
    client: Annotated[
        str | None, typer.Option("--client", help="With --seq: who sends, so that a repeated push is taken once.")
    ] = None,
    seq: Annotated[int | None, typer.Option("--seq", min=0, help="The number of the first request.")] = None,
    deadline: Annotated[float, typer.Option("--deadline", min=0.1, help="Seconds to wait for room.")] = 60.0,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Push records to a source of a model.

    Waits while the cluster is under pressure; when it is done, every record is retained.
    """
    if (client is None) != (seq is None):
        raise UsageError("--client and --seq belong together", remedy="give both or none")
    source = 0 if file == "-" else _open(file)
    sent = Sent()
    try:
        taken = call(
            url,
            token,
            lambda c: c.push_ndjson(stream, sent.noting(pieces(source)), client=client, seq=seq, deadline=deadline),
        )
    except UsageError:
        raise
    except PenstockError as error:
        raise sent.explained(error) from None
    finally:
        if source:
            os.close(source)
    if json:
        print_json({"accepted": taken})
    else:
        error_console().print(f"{taken:,} {'record' if taken == 1 else 'records'} retained by {stream}")


def _open(file: str) -> int:
    path = Path(file)
    if path.is_dir():
        raise UsageError(f"{file} is a directory", remedy="name a file with one JSON value per line")
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise UsageError(f"no such file: {file}") from None
    except PermissionError:
        raise UsageError(f"{file} cannot be read: permission denied") from None


class Sent:
    """What has been sent, for the error of the request that was refused: the node knows that request alone."""

    def __init__(self) -> None:
        self.requests = 0
        self.lines = 0
        """Of the input, before the latest request."""
        self._latest = 0

    def noting(self, bodies: Iterable[bytes]) -> Iterator[bytes]:
        """The bodies, counted."""
        for body in bodies:
            self.requests += 1
            self.lines += self._latest
            self._latest = body.count(b"\n")
            yield body

    def explained(self, error: PenstockError) -> PenstockError:
        """`error` with the place in the input, once earlier requests were taken."""
        if self.requests < 2:
            return error
        problem: dict[str, Any] = getattr(error, "problem", {})
        line = problem.get("line")
        at = f"line {self.lines + line} of the input, " if isinstance(line, int) else ""
        return PenstockError(
            f"{at}request {self.requests}: {error.message}",
            remedy=f"the requests before it, {self.lines:,} lines, are retained; go on behind them",
        )


def pieces(source: int) -> Iterator[bytes]:
    """Whole lines from a file descriptor, as much as is there: a slow pipe goes line by line, a file in big pieces."""
    if source == 0 and sys.stdin.isatty():
        error_console().print("one JSON value per line, end with Ctrl-D", style="dim")
    rest: list[bytes] = []
    length = 0
    while data := os.read(source, PIECE):
        head, newline, tail = data.rpartition(b"\n")
        if newline:
            yield b"".join(rest) + head + newline
            rest, length = [], 0
        rest.append(tail)
        length += len(tail)
        if length > LONGEST:
            raise UsageError(
                f"a line is longer than {LONGEST // 2**20} MiB", remedy="push one JSON value per line, with line ends"
            )
    last = b"".join(rest)
    if last.strip():
        yield last
