"""Text encodings of files, and the error for bytes that do not fit them."""

from __future__ import annotations

import codecs

from penstock.connectors.bad_records import BadRecord, shortened
from penstock.connectors.block_reader import Block
from penstock.errors import ConnectorError, UsageError

BOM = codecs.BOM_UTF8


def checked(encoding: str) -> str:
    """The canonical name of an encoding whose line ends are single bytes. Raises `UsageError` for any other."""
    try:
        name = codecs.lookup(encoding).name
        single = "\n,a".encode(name) == b"\n,a"
    except (LookupError, TypeError):
        raise UsageError(f"no text encoding is called {encoding!r}", remedy="for example utf-8 or latin-1") from None
    if name == "utf-8-sig":
        return "utf-8"
    if not single:
        raise UsageError(
            f"files in {encoding} cannot be read by lines, because a line end is not one byte in it",
            remedy=f"convert the file first: iconv -f {encoding} -t utf-8",
        )
    return name


def decoded(block: Block, encoding: str) -> str | None:
    """The text of a block (without a byte order mark at the start of the file), `None` when some of it does not fit."""
    data = block.data
    if block.position == 0 and encoding == "utf-8" and data.startswith(BOM):
        data = data[len(BOM) :]
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def misfit(path: str, line: bytes, number: int, position: int, error: UnicodeDecodeError) -> BadRecord:
    """A line that is not in the encoding: file, line number and byte offset are named."""
    looks = ""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        looks = "; the file looks like UTF-16"
    return BadRecord(
        line,
        ConnectorError(
            f"{path!r}, line {number}, byte {position + error.start}: not {error.encoding} text "
            f"({error.reason}{looks}): {shortened(line)}",
            remedy='say the file\'s encoding (encoding="latin-1"), or let the flow skip bad records (on_error="skip")',
        ),
    )
