"""Reading a file by big blocks, with exact positions that cost nothing until they are asked for.

A block ends at a line end. Formats (text lines, JSON lines, CSV) parse a whole block at once: the usual case has one
record per line, and then the position after the i-th record is found only when a checkpoint asks, by counting lines.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from penstock.connectors.bad_records import without_bad
from penstock.connectors.byte_stream import ByteStream
from penstock.errors import ConnectorError
from penstock.flow.connector import ConnectorContext, EndOfInput, Reader

BLOCK_BYTES = 256 * 1024
RECORD_BYTES = 16 * 2**20
"""A single line or quoted record may not be longer: the bound of a reader's memory."""


@dataclass(slots=True)
class Block:
    """Complete lines as bytes, and where they start in the file."""

    data: bytes
    position: int
    line: int
    """Number of its first line, from 1."""
    final: bool
    """Whether the file ends here."""


@dataclass(slots=True)
class Parsed:
    """The records of a block."""

    records: list[Any]
    ends: list[int] | None = None
    """For each record the byte of the block after it; `None`: record i is line i."""
    used: int | None = None
    """Bytes of the block that were parsed; the rest comes again with more behind it. `None`: all."""
    has_bad: bool = False
    """Whether there are `BadRecord`s among the records."""


def lines_of(data: bytes) -> list[bytes]:
    """The lines of a block with their line ends; only `\\n` ends a line."""
    lines = [line + b"\n" for line in data.split(b"\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines


class BlockReader(Reader):
    """One file, read in blocks; subclasses parse them. Offsets are `{"byte": …, "line": …}`."""

    def __init__(self, path: str, offset: Any | None, ctx: ConnectorContext) -> None:
        self.path, self.ctx = path, ctx
        start = int(offset["byte"]) if offset else 0
        self._line = int(offset["line"]) if offset else 1
        self.stream = ByteStream(path, start)
        self._carry = b""
        self._block = Block(b"", start, self._line, False)
        self._parsed = Parsed([])
        self._next = 0
        self._counted, self._counted_bytes = 0, 0
        self._more = True

    @abstractmethod
    def parse(self, block: Block) -> Parsed:
        """The records of a block. A bad one is a `BadRecord` in its place; nothing else is raised for bad input."""

    def read(self, limit: int) -> list[Any]:
        """Up to `limit` records of the current block. Raises `EndOfInput`."""
        records = self._parsed.records
        if self._next >= len(records):
            if not self._load():
                return self.at_end()
            records = self._parsed.records
        if self._next == 0 and len(records) <= limit:
            self._next = len(records)
            batch = records
        else:
            batch = records[self._next : self._next + limit]
            self._next += len(batch)
        return without_bad(batch, self.ctx) if self._parsed.has_bad else batch

    def at_end(self) -> list[Any]:
        """What an empty read at the end of the file means: the end of the input, unless the file is followed."""
        raise EndOfInput

    def _load(self) -> bool:
        """Parse the next block that holds any record, `False` at the end of the file."""
        while True:
            self._finish_block()
            block = self._gather()
            if block is None:
                return False
            parsed = self.parse(block)
            used = len(block.data) if parsed.used is None else parsed.used
            self._carry = block.data[used:] + self._carry if used < len(block.data) else self._carry
            block.data = block.data[:used]
            self._block, self._parsed, self._next = block, parsed, 0
            self._counted, self._counted_bytes = 0, 0
            if parsed.records:
                return True
            if not used:
                self._refuse_long(len(self._carry))

    def _finish_block(self) -> None:
        """The block has been handed out: the next one starts where it ends."""
        block = self._block
        self._line = block.line + block.data.count(b"\n")
        self._block = Block(b"", block.position + len(block.data), self._line, False)
        self._parsed, self._next = Parsed([]), 0
        self._counted, self._counted_bytes = 0, 0

    def _gather(self) -> Block | None:
        """The next bytes up to a line end; at the end of the file whatever is left."""
        pieces, size = [self._carry], len(self._carry)
        while True:
            data = self.stream.read(max(BLOCK_BYTES, size // 2))
            if not data:
                return self._last(b"".join(pieces))
            cut = data.rfind(b"\n") + 1
            if cut:
                break
            pieces.append(data)
            size += len(data)
            self._refuse_long(size)
        pieces.append(data[:cut])
        self._carry = data[cut:]
        return Block(b"".join(pieces), self._block.position, self._line, False)

    def _last(self, rest: bytes) -> Block | None:
        """The end of the file was met with `rest` in hand; a followed file keeps a line that is not complete."""
        if self.keeps_partial():
            cut = rest.rfind(b"\n") + 1
            self._carry = rest[cut:]
            return Block(rest[:cut], self._block.position, self._line, False) if cut else None
        self._carry = b""
        return Block(rest, self._block.position, self._line, True) if rest else None

    def keeps_partial(self) -> bool:
        """Whether a last line without line end may still grow."""
        return False

    def _refuse_long(self, size: int) -> None:
        if size > RECORD_BYTES:
            raise ConnectorError(
                f"{self.path!r}, line {self._line}: a single record is longer than {RECORD_BYTES} bytes",
                remedy="check that this is the format of the file, and for a quote that is never closed",
            )

    def switch(self, stream: ByteStream) -> None:
        """Go on with the start of another file (the followed one was replaced or cut)."""
        self._finish_block()
        self.stream.close()
        self.stream, self._carry, self._line = stream, b"", 1
        self._block = Block(b"", 0, 1, False)

    def offset(self) -> Any:
        """The position after the last record returned."""
        self._count_up()
        line = self._block.line + self._block.data.count(b"\n", 0, self._counted_bytes)
        return {"byte": self._block.position + self._counted_bytes, "line": line}

    def _count_up(self) -> None:
        """Find the byte after the records handed out of this block, starting from where it was last asked."""
        block, done = self._block, self._next
        if done == self._counted:
            return
        if done >= len(self._parsed.records):
            self._counted_bytes = len(block.data)
        elif self._parsed.ends is not None:
            self._counted_bytes = self._parsed.ends[done - 1]
        else:
            rest = block.data[self._counted_bytes :].split(b"\n", done - self._counted)[-1]
            self._counted_bytes = len(block.data) - len(rest)
        self._counted = done

    def next_at(self) -> float | None:
        """Bad records alone make a read empty although there is more: come back at once."""
        return self.ctx.clock.monotonic()

    def lag(self) -> int | None:
        """Bytes of the file that have not been read."""
        return max(0, self.stream.size() - self.stream.stored_position())

    def progress(self) -> float | None:
        """Read share of the file."""
        size = self.stream.size()
        return min(1.0, self.stream.stored_position() / size) if size else 1.0

    def close(self) -> None:
        """Close the file."""
        self.stream.close()
