"""`csv`: rows of CSV files as dictionaries. Quoted fields may hold line ends, also across the blocks of reading."""

from __future__ import annotations

import csv as stdlib_csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import Any

from penstock.connectors.bad_records import BadRecord, shortened
from penstock.connectors.block_reader import Block, BlockReader, Parsed, lines_of
from penstock.connectors.byte_stream import ByteStream
from penstock.connectors.encodings import BOM, checked, misfit
from penstock.connectors.paths import Pattern, as_patterns, expand
from penstock.errors import ConnectorError, UsageError
from penstock.flow.connector import ConnectorContext, Source

Converter = Callable[[str], Any]


@dataclass(frozen=True)
class CsvFiles(Source):
    """Made by `csv`."""

    paths: tuple[str, ...]
    header: bool | tuple[str, ...]
    types: Mapping[str, Converter] | None
    delimiter: str
    quote: str
    encoding: str

    def partitions(self) -> Sequence[str]:
        """The files."""
        return expand(self.paths)

    def open(self, partition: str, offset: Any | None, ctx: ConnectorContext) -> CsvReader:
        """Rows of one file."""
        return CsvReader(partition, offset, ctx, self)

    def describe(self) -> str:
        """The paths."""
        return f"csv {', '.join(self.paths)}"


def csv(
    paths: Pattern | Sequence[Pattern],
    *,
    header: bool | Sequence[str] = True,
    types: Mapping[str, Converter] | None = None,
    delimiter: str = ",",
    quote: str = '"',
    encoding: str = "utf-8",
) -> CsvFiles:
    """Rows of CSV files (RFC 4180), `.gz` too: dictionaries of text by column name.

    `paths` names files as in `files`. `header=True` takes the names from the first row of each file, and skips rows
    equal to it (files that were joined); a list gives the names of files without header; `False` gives lists instead
    of dictionaries. `types` converts columns, for example `{"value": float, "at": datetime}`; `bool` reads
    true/false/yes/no/1/0. A row that cannot be parsed or converted, or has another number of fields than the header,
    is a bad record.

    Raises `UsageError` for impossible options, `ConnectorError` when a file cannot be read.
    """
    for name, mark in (("delimiter", delimiter), ("quote", quote)):
        if len(mark) != 1 or mark in "\r\n":
            raise UsageError(f"csv: {name}={mark!r}: one character was expected")
    names: bool | tuple[str, ...] = header if isinstance(header, bool) else tuple(header)
    if types and names is False:
        raise UsageError("csv: types= needs column names", remedy="give header=[names] or header=True")
    if isinstance(names, tuple) and types and not set(types) <= set(names):
        raise UsageError(f"csv: types= names columns {sorted(set(types) - set(names))} that header= does not")
    return CsvFiles(as_patterns(paths), names, types, delimiter, quote, checked(encoding))


def _boolean(text: str) -> bool:
    value = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(text.strip().lower())
    if value is None:
        raise ValueError(f"not a truth value: {text!r}")
    return value


_CONVERTERS: dict[Any, Converter] = {bool: _boolean, datetime: datetime.fromisoformat}


class CsvReader(BlockReader):
    """Rows of one CSV file."""

    def __init__(self, path: str, offset: Any | None, ctx: ConnectorContext, source: CsvFiles) -> None:
        super().__init__(path, offset, ctx)
        self._source = source
        self._names: list[str] | None = None
        self._skip_header = False
        try:
            self._learn_names(source)
        except BaseException:
            self.close()
            raise
        self._converters: list[tuple[str, Converter]] = [
            (name, _CONVERTERS.get(kind, kind)) for name, kind in (source.types or {}).items()
        ]

    def _learn_names(self, source: CsvFiles) -> None:
        if isinstance(source.header, tuple):
            self._names = list(source.header)
        elif source.header:
            self._skip_header = True
            self._names = self._read_header()
        if self._names is None:
            return
        twice = sorted({name for name in self._names if self._names.count(name) > 1})
        if twice:
            raise ConnectorError(
                f"{self.path!r}: the header names {twice} more than once", remedy="give header=[names]"
            )
        absent = sorted(set(source.types or {}) - set(self._names))
        if absent and self._names:
            raise ConnectorError(f"{self.path!r} has no column {absent}", remedy=f"it has {self._names}")

    def _read_header(self) -> list[str]:
        """The first row of the file, whatever the position to read from."""
        stream = ByteStream(self.path)
        try:
            data = stream.read(2**20)
        finally:
            stream.close()
        text = data.removeprefix(BOM).decode(self._source.encoding, "replace")
        rows = self._rows(f"{line}\n" for line in text.split("\n"))
        try:
            return next((row for row in rows if row), [])
        except stdlib_csv.Error as error:
            raise ConnectorError(f"{self.path!r}: the header is not CSV: {error}") from error

    def _rows(self, lines: Iterable[str]) -> Any:
        return stdlib_csv.reader(lines, delimiter=self._source.delimiter, quotechar=self._source.quote, strict=True)

    def parse(self, block: Block) -> Parsed:
        """The rows of a block; a quoted field that is still open at its end comes again with the next."""
        data = block.data.removeprefix(BOM) if block.position == 0 else block.data
        try:
            text = data.decode(self._source.encoding)
        except UnicodeDecodeError:
            return self._parse_rows(block, *self._decoded_lines(block))
        if self._source.quote not in text:
            parsed = self._parse_plain(text)
            if parsed is not None:
                return parsed
        lines = text.split("\n")
        if not lines[-1]:
            lines.pop()
        return self._parse_rows(block, lines, {})

    def _parse_plain(self, text: str) -> Parsed | None:
        """A block without any quote: one row per line; `None` when a row needs a closer look."""
        lines = text.split("\n")
        if not lines[-1]:
            lines.pop()
        try:
            rows = list(self._rows(lines))
            names = self._names
            if names is None:
                return Parsed(rows) if all(rows) else None
            width = len(names)
            if any(len(row) != width for row in rows) or (self._skip_header and names in rows):
                return None
            records = [dict(zip(names, row, strict=True)) for row in rows]
            for name, convert in self._converters:
                for record in records:
                    record[name] = convert(record[name])
        except (stdlib_csv.Error, ValueError, ArithmeticError):
            return None
        return Parsed(records)

    def _decoded_lines(self, block: Block) -> tuple[list[str], dict[int, BadRecord]]:
        """Lines of a block of which some are not in the encoding: those become empty, and bad records by number."""
        lines, bad, position = [], {}, 0
        for number, line in enumerate(lines_of(block.data)):
            raw = line.removesuffix(b"\n")
            try:
                content = raw.removeprefix(BOM) if block.position + position == 0 else raw
                lines.append(content.decode(self._source.encoding))
            except UnicodeDecodeError as error:
                lines.append("")
                bad[number] = misfit(self.path, raw, block.line + number, block.position + position, error)
            position += len(line)
        return lines, bad

    def _parse_rows(self, block: Block, lines: list[str], bad: dict[int, BadRecord]) -> Parsed:
        """Row by row, knowing how many lines each one takes. A row that is not CSV spoils its first line only: after
        a stray quote the lines behind it are read again as rows."""
        ends_of_lines = _line_ends(block.data)
        parsed = Parsed([], ends=[], has_bad=True)
        at = base = 0
        rows = self._rows(f"{line}\n" for line in lines)
        while at < len(lines):
            try:
                row = next(rows)
            except stdlib_csv.Error as error:
                if "unexpected end" in str(error) and not block.final:
                    parsed.used = ends_of_lines[at - 1] if at else 0
                    return parsed
                record: Any = bad.get(at) or self._bad(lines[at], block, at, f"not CSV: {error}")
                end = base = at + 1
                rows = self._rows(f"{line}\n" for line in lines[base:])
            else:
                end = base + rows.line_num
                spoiled = next((bad[line] for line in range(at, end) if line in bad), None)
                record = spoiled or self._record(row, block, at)
            _append(parsed, record, ends_of_lines[end - 1])
            at = end
        return parsed

    def _record(self, row: list[str], block: Block, line: int) -> Any:
        """A row as a record; `None` for a blank line or a repeated header."""
        names = self._names
        if not row:
            return None
        if names is None:
            return row
        if self._skip_header and row == names:
            return None
        if len(row) != len(names):
            return self._bad(",".join(row), block, line, f"{len(row)} fields where the header names {len(names)}")
        record: dict[str, Any] = dict(zip(names, row, strict=True))
        for name, convert in self._converters:
            try:
                record[name] = convert(record[name])
            except (ValueError, TypeError, ArithmeticError) as error:
                return self._bad(",".join(row), block, line, f"column {name!r} cannot be converted: {error}")
        return record

    def _bad(self, raw: str, block: Block, line: int, why: str) -> BadRecord:
        return BadRecord(
            raw,
            ConnectorError(
                f"{self.path!r}, line {block.line + line}: {why}: {shortened(raw)}",
                remedy='mend the row, or let the flow skip bad records (on_error="skip")',
            ),
        )


def _append(parsed: Parsed, record: Any, end: int) -> None:
    """Add a record that ends at byte `end`; a line without record belongs to the record before it."""
    assert parsed.ends is not None
    if record is not None:
        parsed.records.append(record)
        parsed.ends.append(end)
    elif parsed.ends:
        parsed.ends[-1] = end


def _line_ends(data: bytes) -> list[int]:
    return list(accumulate(map(len, lines_of(data))))
