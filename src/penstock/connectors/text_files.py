"""`files`: lines of text files as a source, and lines of text into files as a sink."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from penstock.connectors.bad_records import BadRecord
from penstock.connectors.block_reader import Block, BlockReader, Parsed, lines_of
from penstock.connectors.both_ways import SourceAndSink
from penstock.connectors.byte_stream import ByteStream
from penstock.connectors.encodings import BOM, checked, decoded, misfit
from penstock.connectors.followed import FollowedFile, resume_followed
from penstock.connectors.json_lines import text_lines
from penstock.connectors.part_files import PartFiles
from penstock.connectors.paths import Pattern, as_patterns, expand
from penstock.errors import UsageError
from penstock.flow.connector import ConnectorContext, Reader, Writer


@dataclass(frozen=True)
class TextFiles(SourceAndSink):
    """Made by `files`."""

    paths: tuple[str, ...]
    bounded: bool = True
    encoding: str = "utf-8"
    roll: float = 60.0

    def partitions(self) -> Sequence[str]:
        """The files."""
        return expand(self.paths)

    def reader(self, partition: str, offset: Any | None, ctx: ConnectorContext) -> Reader:
        """Lines of one file."""
        if self.bounded:
            return LineReader(partition, offset, ctx, self.encoding)
        return FollowingLineReader(partition, offset, ctx, self.encoding)

    def writer(self, ctx: ConnectorContext) -> Writer:
        """Lines of text, one per record."""
        return PartFiles(single_path(self.paths, "files"), ctx, text_lines, suffix=".txt", roll=self.roll)

    def describe(self) -> str:
        """The paths."""
        return f"files {', '.join(self.paths)}"


def files(
    paths: Pattern | Sequence[Pattern], *, follow: bool = False, encoding: str = "utf-8", roll: float = 60.0
) -> TextFiles:
    """Lines of text.

    As a source: every line of the files that `paths` names (a path, a glob pattern, a directory, or a list of these),
    without its line end; `.gz` files are decompressed. Each file is a partition. `follow=True` waits for more at the
    end of each file, as `tail -F` does, also when it is cut or replaced.

    As a sink: one line per record (text as it is, anything else as JSON). `paths` is one file, or a directory (a
    trailing `/`) of part files; see `penstock.connectors.part_files`. `roll` is in seconds: how often parts of a run
    without checkpoints become visible.

    Raises `UsageError` for an impossible combination, and `ConnectorError` when the files cannot be read or written.
    """
    patterns = as_patterns(paths)
    if follow and any(pattern.endswith(".gz") for pattern in patterns):
        raise UsageError("a .gz file cannot be followed", remedy="follow the plain file, or read without follow=True")
    if roll <= 0:
        raise UsageError(f"roll={roll}: seconds greater than 0 were expected")
    return TextFiles(patterns, not follow, checked(encoding), roll)


def single_path(paths: tuple[str, ...], name: str) -> str:
    """The one path that a sink writes to. Raises `UsageError` for several."""
    if len(paths) != 1:
        raise UsageError(f"a sink writes to one path, but {name} got {len(paths)}", remedy="make one sink per path")
    return paths[0]


class LineReader(BlockReader):
    """Lines of one file, without line ends (`\\n` or `\\r\\n`)."""

    def __init__(self, path: str, offset: Any | None, ctx: ConnectorContext, encoding: str) -> None:
        super().__init__(path, offset, ctx)
        self.encoding = encoding

    def parse(self, block: Block) -> Parsed:
        """Split a block into lines."""
        text = decoded(block, self.encoding)
        if text is None:
            return self._parse_slowly(block)
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        lines = text.split("\n")
        if not lines[-1]:
            lines.pop()
        return Parsed(lines)

    def _parse_slowly(self, block: Block) -> Parsed:
        """Line by line, because some line is not in the encoding."""
        parsed = Parsed([], ends=[], has_bad=True)
        position = 0
        for number, line in enumerate(lines_of(block.data)):
            raw = line.rstrip(b"\n").removesuffix(b"\r")
            if block.position + position == 0 and self.encoding == "utf-8":
                raw = raw.removeprefix(BOM)
            record: str | BadRecord
            try:
                record = raw.decode(self.encoding)
            except UnicodeDecodeError as error:
                record = misfit(self.path, raw, block.line + number, block.position + position, error)
            position += len(line)
            parsed.records.append(record)
            assert parsed.ends is not None
            parsed.ends.append(position)
        return parsed


class FollowingLineReader(FollowedFile, LineReader):
    """Lines of a file that grows."""

    def __init__(self, path: str, offset: Any | None, ctx: ConnectorContext, encoding: str) -> None:
        opened, offset = resume_followed(path, offset)
        super().__init__(opened, offset, ctx, encoding)
        self.followed_path = path
        self.path = path

    def open_again(self) -> ByteStream:
        """The file that has the path now."""
        return ByteStream(self.followed_path)
