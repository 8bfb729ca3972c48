"""How commands speak: tables for people, JSON for programs, one paragraph for errors.

Colours appear on a terminal alone and never when `NO_COLOR` is set; nothing is wrapped or cut when the output goes to
a file or a pipe. Rich is imported when something is printed, so that `penstock --help` is quick.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from penstock.errors import PenstockError, UsageError

if TYPE_CHECKING:
    from rich.console import Console, OverflowMethod
    from rich.table import Table

PIPE_WIDTH = 1000
"""Columns of an output that is not a terminal."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.", show_default=False)]
"""The `--json` option that every printing command has."""


def console(stream: IO[str] | None = None) -> Console:
    """A console on `stream` (standard output unless given)."""
    from rich.console import Console

    out = sys.stdout if stream is None else stream
    width = None if out.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=out, width=width, highlight=False, soft_wrap=width is not None)


def error_console() -> Console:
    """A console on standard error: progress, notes and errors, so that standard output carries results alone."""
    return console(sys.stderr)


def json_text(value: Any, *, indent: int = 2) -> str:
    """`value` as JSON; what JSON has no form for is written as text."""
    import msgspec

    encoded = msgspec.json.encode(value, enc_hook=str)
    return (msgspec.json.format(encoded, indent=indent) if indent else encoded).decode()


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json_text(value) + "\n")
    sys.stdout.flush()


def print_lines(values: Iterable[Any]) -> None:
    """NDJSON on standard output."""
    for value in values:
        sys.stdout.write(json_text(value, indent=0) + "\n")
    sys.stdout.flush()


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None, one_line: bool = False
) -> Table:
    """A plain table; a column whose name starts with `#` is right-aligned (the mark is not shown).

    `one_line`: a row never takes a second line; where the width does not do, texts are cut before numbers are.
    """
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, box=SIMPLE, title_justify="left", pad_edge=False, collapse_padding=one_line)
    overflow: OverflowMethod = "ellipsis" if one_line else "fold"
    for column in columns:
        numeric = column.startswith("#")
        heading = Text(column.removeprefix("#"), no_wrap=one_line, overflow=overflow)
        # Rich takes width from columns that may wrap first, and their cells may not wrap either.
        made.add_column(
            heading, justify="right" if numeric else "left", overflow=overflow, no_wrap=one_line and numeric
        )
    for row in rows:
        cells = [cell if isinstance(cell, Text) else Text(_cell(cell)) for cell in row]
        if one_line:
            for cell in cells:
                cell.no_wrap, cell.overflow = True, overflow
        made.add_row(*cells)
    return made


NARROW = 120
"""Columns of a terminal below which wide tables leave their least important columns out."""


def shown(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], width: int, spare: Iterable[str]
) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table as a terminal of `width` has room for them: without the `spare` ones if narrow."""
    left_out = set(spare) if width < NARROW else set()
    kept = [i for i, column in enumerate(columns) if column not in left_out]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def value_text(value: Any) -> str:
    """A record or a piece of state in one line: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json_text(value, indent=0)


def seconds(value: float | None) -> str:
    """A duration as people read it: `3.1 ms`, `2.4 s`."""
    if value is None:
        return "-"
    if value < 0.001:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def size(value: float) -> str:
    """A number of bytes as people read it: `512 B`, `3.2 MB`."""
    for unit in ("B", "kB", "MB"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def exit_code(error: PenstockError) -> int:
    """2 for wrong usage, 1 for an operation that failed."""
    return 2 if isinstance(error, UsageError) else 1


def _without_number(error: BaseException) -> str:
    """`No space left on device`, `x.ndjson: Permission denied`: what the system said, without its number."""
    if not isinstance(error, OSError) or error.strerror is None:
        return f"{type(error).__name__}: {error}"
    return error.strerror if error.filename is None else f"{os.fsdecode(error.filename)}: {error.strerror}"


def print_error(error: BaseException) -> None:
    """One readable paragraph on standard error; with `PENSTOCK_DEBUG=1` the trace before it."""
    if os.environ.get("PENSTOCK_DEBUG") == "1":
        traceback.print_exception(error)
    text = str(error) if isinstance(error, PenstockError) else _without_number(error)
    nodes: dict[str, str] = getattr(error, "nodes", None) or {}
    if nodes:
        text = str(getattr(error, "detail", text))
    out = error_console()
    out.print("[bold red]error:[/] ", end="")
    out.print(text, markup=False)
    if nodes:
        out.print(table(("node", "reason"), nodes.items()))
