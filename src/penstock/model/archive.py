"""Reading a package that somebody else made: a zip file, taken as hostile input.

Only the plain form that wheel builders write is accepted: local headers one after another from the first byte, then
the central directory, then the end record as the last bytes. Every header has to be there twice with equal content, so
that no two readers can see different packages. Nothing is decompressed further than its header promised, and every
file has to be the one that RECORD lists (PEP 427, "The .dist-info directory").
"""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import re
import stat
import struct
import sys
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import msgspec

from penstock.errors import UsageError

__all__ = ["Archive", "Limits", "Member", "PackageError", "fault_of_file", "open_archive"]

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 0x0041
"""Flags: encrypted, or strongly encrypted."""
_KNOWN_FLAGS = 0x0806
"""Flags that change nothing here: how hard was compressed, names in UTF-8."""
_CHUNK = 1 << 18
_SMALL = 1 << 20
"""Bytes up to which a member may be as compressible as it likes."""
_IMPORTABLE = (".py", ".so", ".pyd")
_NAME_LIMIT = 512
_RECORD_LIMIT = 16 << 20
_DIST_INFO = re.compile(r"[^/]+\.dist-info")


class PackageError(UsageError):
    """A package that is not accepted, and why."""


class Limits(msgspec.Struct, frozen=True):
    """How big a package may be. Sizes are in bytes."""

    members: int = 10_000
    size: int = 1 << 30
    """All members, unpacked."""
    member: int = 512 << 20
    """One member, unpacked."""
    ratio: int = 200
    """Unpacked over packed, for all members together and for each that is over 1 MiB."""
    file: int = 512 << 20
    """The file itself."""


class Member(NamedTuple):
    """A file in the archive."""

    name: str
    method: int
    crc: int
    packed: int
    size: int
    offset: int
    """Of its data."""


class Archive:
    """An archive whose structure has been checked; its contents are checked while they are read."""

    def __init__(self, file: BufferedReader, path: Path, limits: Limits) -> None:
        self._file, self._path, self._limits = file, path, limits
        self.size = os.fstat(file.fileno()).st_size
        if self.size > limits.file:
            raise self.error(f"it has {self.size:,} bytes", f"the limit is {limits.file:,}")
        self._record: dict[str, tuple[bytes, int]] = {}
        self.members: dict[str, Member] = {}
        for member in self._read_members():
            if member.name in self.members:
                raise self.error(f"it has two files {member.name!r}")
            self.members[member.name] = member
        self._check_sizes()
        self._check_names()
        self.dist_info = self._find_dist_info()
        self._record = self._read_record()

    def error(self, what: str, remedy: str | None = None) -> PackageError:
        """What is wrong with this package."""
        return PackageError(f"{self._path.name} is not a package: {what}", remedy=remedy)

    def digest(self) -> str:
        """SHA-256 of the file, in hexadecimal digits."""
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()

    def chunks(self, name: str) -> Iterator[bytes]:
        """A member's content. Raises `PackageError` at its end when it is not what the headers and RECORD say."""
        member = self.members[name]
        digest, crc, size = hashlib.sha256(), 0, 0
        for chunk in self._inflated(member):
            size += len(chunk)
            if size > member.size:
                raise self.error(f"{name} is longer than its header says ({member.size:,} bytes)")
            digest.update(chunk)
            crc = zlib.crc32(chunk, crc)
            yield chunk
        if size != member.size:
            raise self.error(f"{name} has {size:,} bytes, its header says {member.size:,}")
        if crc != member.crc:
            raise self.error(f"{name} does not have the checksum that its header says")
        if name in self._record and self._record[name] != (digest.digest(), size):
            raise self.error(f"{name} is not the file that RECORD lists", "build the package again")

    def read(self, name: str, limit: int) -> bytes:
        """A small member as a whole."""
        if self.members[name].size > limit:
            raise self.error(f"{name} has {self.members[name].size:,} bytes", f"the limit is {limit:,}")
        return b"".join(self.chunks(name))

    def sha256(self, name: str) -> str:
        """What RECORD says of a member, in hexadecimal digits; reading the member shows whether it is true."""
        return self._record[name][0].hex() if name in self._record else ""

    def verify(self) -> None:
        """Read every member. Raises `PackageError` for the first that is not what it says it is."""
        for name in self.members:
            for _ in self.chunks(name):
                pass

    def _inflated(self, member: Member) -> Iterator[bytes]:
        self._file.seek(member.offset)
        left = member.packed
        plain = zlib.decompressobj(-zlib.MAX_WBITS)
        while left:
            data = self._file.read(min(left, _CHUNK))
            if not data:
                raise self.error(f"it ends inside {member.name}", "it was cut off; send it again")
            left -= len(data)
            if member.method == _STORED:
                yield data
                continue
            try:
                while data:
                    # At most one chunk at a time, whatever the data would unpack to.
                    yield plain.decompress(data, _CHUNK)
                    data = plain.unconsumed_tail
            except zlib.error as error:
                raise self.error(f"{member.name} cannot be decompressed: {error}") from error
            if plain.unused_data:
                raise self.error(f"{member.name} has data behind its end")
        if member.method == _DEFLATED:
            while rest := plain.decompress(b"", _CHUNK):
                yield rest
            if not plain.eof:
                raise self.error(f"{member.name} is cut off")

    # The structure

    def _read_members(self) -> Iterator[Member]:
        start, size, count = self._read_end()
        self._file.seek(start)
        directory = self._file.read(size)
        position, expected = 0, 0
        for _ in range(count):
            if position + _CENTRAL.size > len(directory):
                raise self.error("its directory is cut off")
            fields = _CENTRAL.unpack_from(directory, position)
            (signature, made_by, _, flags, method, _, _, crc, packed, plain) = fields[:10]
            (name_size, extra_size, comment_size, disk, _, attributes, offset) = fields[10:]
            position += _CENTRAL.size
            raw = directory[position : position + name_size]
            position += name_size + extra_size + comment_size
            if signature != b"PK\x01\x02" or position > len(directory) or disk:
                raise self.error("its directory is damaged")
            name = self._name(raw, flags)
            self._check_kind(name, made_by, flags, method, attributes)
            if offset != expected:
                raise self.error(f"{name} does not begin where the file before it ends")
            data = self._check_local(name, raw, offset, (flags, method, crc, packed, plain))
            expected = data + packed
            yield Member(name, method, crc, packed, plain, data)
        if position != len(directory) or expected != start:
            raise self.error("it has data that belongs to no file")

    def _read_end(self) -> tuple[int, int, int]:
        """Offset and size of the central directory, and how many members there are."""
        if self.size < _END.size:
            raise self.error("it is no zip file", "give a wheel that penstock has built")
        self._file.seek(self.size - _END.size)
        signature, disk, first, here, count, size, start, comment = _END.unpack(self._file.read(_END.size))
        if signature != b"PK\x05\x06" or comment:
            raise self.error("it is no zip file, or it is cut off", "give a wheel that penstock has built")
        if count > self._limits.members:
            raise self.error(f"it has {count:,} files", f"the limit is {self._limits.members:,}")
        if disk or first or here != count or start + size + _END.size != self.size:
            raise self.error("its end does not fit its directory")
        if size > count * (_CENTRAL.size + 2 * _NAME_LIMIT):
            raise self.error("its directory is too large for its files")
        return start, size, count

    def _name(self, raw: bytes, flags: int) -> str:
        try:
            name = raw.decode("utf-8" if flags & 0x0800 else "ascii")
        except UnicodeDecodeError as error:
            raise self.error(f"the name {raw!r} is not UTF-8") from error
        fault = _fault_of_name(name, len(raw))
        if fault:
            raise self.error(f"the name {name!r} {fault}")
        return name

    def _check_kind(self, name: str, made_by: int, flags: int, method: int, attributes: int) -> None:
        mode = attributes >> 16
        if flags & _ENCRYPTED:
            raise self.error(f"{name} is encrypted")
        if flags & ~_KNOWN_FLAGS:
            raise self.error(f"{name} is written in a form that is not accepted (flags {flags:#06x})")
        if method not in (_STORED, _DEFLATED):
            raise self.error(f"{name} is compressed by method {method}", "use deflate")
        if stat.S_ISLNK(mode):
            raise self.error(f"{name} is a link", "put the file itself into the package")
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG) or attributes & 0x410:  # a directory or a link, as DOS says it
            raise self.error(f"{name} is not a plain file (made by {made_by:#06x})")

    def _check_local(self, name: str, raw: bytes, offset: int, expected: tuple[int, int, int, int, int]) -> int:
        """Where a member's data begins, when the header in front of it says the same as the directory."""
        self._file.seek(offset)
        header = self._file.read(_LOCAL.size)
        if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
            raise self.error(f"{name} is not where the directory says")
        _, _, flags, method, _, _, crc, packed, plain, name_size, extra_size = _LOCAL.unpack(header)
        if self._file.read(name_size) != raw or (flags, method, crc, packed, plain) != expected:
            raise self.error(f"{name}: its header and the directory say different things")
        if method == _STORED and packed != plain:
            raise self.error(f"{name} is stored with two sizes")
        return offset + _LOCAL.size + int(name_size) + int(extra_size)

    # What it holds

    def _check_sizes(self) -> None:
        limits = self._limits
        for member in self.members.values():
            if member.size > limits.member:
                raise self.error(f"{member.name} has {member.size:,} bytes", f"the limit is {limits.member:,}")
            if member.size > max(_SMALL, member.packed * limits.ratio):
                raise self.error(f"{member.name} is compressed more than {limits.ratio} times")
        plain = sum(member.size for member in self.members.values())
        if plain > limits.size:
            raise self.error(f"it unpacks to {plain:,} bytes", f"the limit is {limits.size:,}")
        if plain > max(_SMALL, self.size * limits.ratio):
            raise self.error(f"it is compressed more than {limits.ratio} times")

    def _check_names(self) -> None:
        """No two names for one file, also on a file system that folds case or normalises."""
        known: dict[str, str] = {}
        for name in self.members:
            folded = _folded(name)
            if folded in known:
                raise self.error(f"{name!r} and {known[folded]!r} would be one file")
            known[folded] = name
        for folded, name in known.items():
            parts = folded.split("/")
            for depth in range(1, len(parts)):
                if (above := known.get("/".join(parts[:depth]))) is not None:
                    raise self.error(f"{above!r} is a file and the directory of {name!r}")
        for name in self.members:
            if fault := fault_of_file(name):
                raise self.error(f"{name!r} {fault}")

    def _find_dist_info(self) -> str:
        found = sorted({top for name in self.members if _DIST_INFO.fullmatch(top := name.partition("/")[0])})
        if len(found) != 1:
            what = (
                "has no .dist-info directory"
                if not found
                else f"has several .dist-info directories: {', '.join(found)}"
            )
            raise self.error(f"it {what}", "give a wheel that penstock has built: penstock model add DIR")
        return found[0]

    def _read_record(self) -> dict[str, tuple[bytes, int]]:
        """name -> (SHA-256, size), for every member but RECORD."""
        own = f"{self.dist_info}/RECORD"
        if own not in self.members:
            raise self.error(f"it has no {own}")
        record: dict[str, tuple[bytes, int]] = {}
        try:
            rows = list(csv.reader(self.read(own, _RECORD_LIMIT).decode("utf-8").splitlines(), strict=True))
            for name, digest, size in rows:
                if name in record or (name == own and (digest or size)):
                    raise ValueError(f"{name!r} is listed twice or with its own hash")
                if name != own:
                    record[name] = (_recorded_digest(digest), _natural(size))
        except (ValueError, csv.Error) as error:
            raise self.error(f"RECORD cannot be read: {error}") from error
        for name in sorted(record.keys() ^ (self.members.keys() - {own})):
            what = "RECORD lists {!r}, which is missing" if name in record else "RECORD does not list {!r}"
            raise self.error(what.format(name))
        return record


@contextmanager
def open_archive(path: Path, limits: Limits) -> Iterator[Archive]:
    """The archive at `path`, structure checked. Raises `PackageError`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not make us wait
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PackageError(f"{path} is not a file")
    with open(descriptor, "rb") as file:
        yield Archive(file, path, limits)


def fault_of_file(name: str) -> str | None:
    """Why a package may not hold a file of this name; `None`: it may."""
    top, slash, _ = name.partition("/")
    if not slash and top.endswith(".pth"):
        return "would run code when Python starts"
    if slash and top.endswith(".data"):
        return "would be installed outside of the package"
    if name.endswith((".pyc", ".pyo")):
        return "is compiled; a package holds sources only"
    module = (top if slash else top.partition(".")[0] if top.endswith(_IMPORTABLE) else "").casefold()
    if module == "penstock":
        return "would stand in for penstock itself; rename it"
    if module in sys.stdlib_module_names:
        return f"would stand in for the standard library's {module}; rename it"
    return None


def _fault_of_name(name: str, size: int) -> str | None:
    """Why a member may not have this name; `None`: it may."""
    if not name or size > _NAME_LIMIT:
        return f"is empty or longer than {_NAME_LIMIT} bytes"
    if any(character in '\\:*?"<>|' or not character.isprintable() for character in name):
        return "has a character that file names of packages do not have"
    if name.endswith("/"):
        return "is a directory; a package lists files only"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return "leads out of the package or is not in its plain form"
        if part[-1] in " ." or part[0] == " " or len(part.encode()) > 255:
            return "is not a name on every file system"
    return None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", name).casefold())


def _recorded_digest(text: str) -> bytes:
    """A hash as RECORD writes it."""
    algorithm, _, value = text.partition("=")
    digest = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)) if algorithm == "sha256" else b""
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError(f"{text!r} is not a SHA-256")
    return digest


def _natural(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise ValueError(f"{text!r} is not a size")
    return int(text)
