"""`penstock push`: send records to a source of a model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.connection import DEFAULT_URL, Token, Url, call
from penstock.cli.output import Json, error_console, print_json
from penstock.errors import UsageError

PIECE = 256 * 2**10
"""Bytes that one request carries at most, unless a single line is longer."""


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
    try:
        taken = call(
            url, token, lambda c: c.push_ndjson(stream, pieces(source), client=client, seq=seq, deadline=deadline)
        )
    finally:
        if source:
            os.close(source)
    if json:
        print_json({"accepted": taken})
    else:
        error_console().print(f"{taken:,} records retained by {stream}")


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


def pieces(source: int) -> Iterator[bytes]:
    """Whole lines from a file descriptor, as much as is there: a slow pipe goes line by line, a file in big pieces."""
    if source == 0 and sys.stdin.isatty():
        error_console().print("one JSON value per line, end with Ctrl-D", style="dim")
    rest = b""
    while data := os.read(source, PIECE):
        head, newline, tail = (rest + data).rpartition(b"\n")
        if newline and head.strip():
            yield head + newline
        rest = tail
    if rest.strip():
        yield rest
