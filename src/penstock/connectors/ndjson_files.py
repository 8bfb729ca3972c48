"""`ndjson`: files of JSON lines, read or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from penstock.connectors.bad_records import BadRecord, shortened
from penstock.connectors.block_reader import Block, BlockReader, Parsed, lines_of
from penstock.connectors.both_ways import SourceAndSink
from penstock.connectors.byte_stream import ByteStream
from penstock.connectors.encodings import BOM
from penstock.connectors.followed import FollowedFile, resume_followed
from penstock.connectors.json_lines import encode_lines
from penstock.connectors.part_files import PartFiles
from penstock.connectors.paths import Pattern, as_patterns, expand
from penstock.connectors.text_files import single_path
from penstock.errors import ConnectorError, UsageError
from penstock.flow.connector import ConnectorContext, Reader, Writer


@dataclass(frozen=True)
class JsonLineFiles(SourceAndSink):
    """Made by `ndjson`."""

    paths: tuple[str, ...]
    bounded: bool = True
    type: Any = Any
    roll: float = 60.0

    def partitions(self) -> Sequence[str]:
        """The files."""
        return expand(self.paths)

    def reader(self, partition: str, offset: Any | None, ctx: ConnectorContext) -> Reader:
        """Records of one file."""
        if self.bounded:
            return JsonLineReader(partition, offset, ctx, self.type)
        return FollowingJsonLineReader(partition, offset, ctx, self.type)

    def writer(self, ctx: ConnectorContext) -> Writer:
        """JSON lines, one per record."""
        return PartFiles(single_path(self.paths, "ndjson"), ctx, encode_lines, suffix=".ndjson", roll=self.roll)

    def describe(self) -> str:
        """The paths."""
        return f"ndjson {', '.join(self.paths)}"


def ndjson(
    paths: Pattern | Sequence[Pattern], *, follow: bool = False, type: Any = Any, roll: float = 60.0
) -> JsonLineFiles:
    """One JSON value per line (NDJSON, JSON Lines), in UTF-8.

    As a source: the files that `paths` names (see `files`), `.gz` too; blank lines are skipped. `type` is what each
    line must be (a msgspec Struct, a dataclass, `dict[str, float]` …; default: anything); a line that is not is a bad
    record. `follow=True` waits for more at the end of each file.

    As a sink: one line per record, into one file or a directory of parts; see `files` for `paths` and `roll` (seconds).

    Raises `UsageError` for an impossible combination, and `ConnectorError` when the files cannot be read or written.
    """
    patterns = as_patterns(paths)
    if follow and any(pattern.endswith(".gz") for pattern in patterns):
        raise UsageError("a .gz file cannot be followed", remedy="follow the plain file, or read without follow=True")
    if roll <= 0:
        raise UsageError(f"roll={roll}: seconds greater than 0 were expected")
    return JsonLineFiles(patterns, not follow, type, roll)


class JsonLineReader(BlockReader):
    """Records of one file of JSON lines."""

    def __init__(self, path: str, offset: Any | None, ctx: ConnectorContext, type: Any) -> None:
        super().__init__(path, offset, ctx)
        self._decode = msgspec.json.Decoder(type).decode

    def parse(self, block: Block) -> Parsed:
        """Decode every line."""
        lines = block.data.split(b"\n")
        if not lines[-1]:
            lines.pop()
        try:
            return Parsed(list(map(self._decode, lines)))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._parse_slowly(block)

    def _parse_slowly(self, block: Block) -> Parsed:
        """Line by line, because one is blank or bad."""
        records: list[Any] = []
        ends: list[int] = []
        position = 0
        for number, line in enumerate(lines_of(block.data)):
            start, position = position, position + len(line)
            content = line.removeprefix(BOM) if block.position + start == 0 else line
            if not content.strip():
                if ends:
                    ends[-1] = position
                continue
            try:
                record = self._decode(content)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                record = self._bad(content.rstrip(b"\r\n"), block.line + number, block.position + start, error)
            records.append(record)
            ends.append(position)
        return Parsed(records, ends, has_bad=True)

    def _bad(self, line: bytes, number: int, position: int, error: Exception) -> BadRecord:
        where = f"{self.path!r}, line {number} (byte {position})"
        return BadRecord(
            line,
            ConnectorError(
                f"{where}: {_reason(error)}: {shortened(line)}",
                remedy='mend the line, or let the flow skip bad records (on_error="skip")',
            ),
        )


def _reason(error: Exception) -> str:
    if isinstance(error, msgspec.ValidationError):
        return f"not of the expected type: {error}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text ({error.reason} at byte {error.start} of the line)"
    return f"not JSON: {error or type(error).__name__}"


class FollowingJsonLineReader(FollowedFile, JsonLineReader):
    """Records of a file of JSON lines that grows."""

    def __init__(self, path: str, offset: Any | None, ctx: ConnectorContext, type: Any) -> None:
        opened, offset = resume_followed(path, offset)
        super().__init__(opened, offset, ctx, type)
        self.followed_path = path

    def open_again(self) -> ByteStream:
        """The file that has the path now."""
        return ByteStream(self.followed_path)
