"""Reading `multipart/form-data` (RFC 7578) part by part as it arrives, so that a large file never is in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.message import Message
from email.parser import HeaderParser

from penstock.gateway.problems import Problem

LONGEST_HEADERS = 16 * 2**10
"""Bytes of the headers of one part."""
LONGEST_PADDING = 256
"""Bytes of white space between a boundary and the end of its line."""
LONGEST_BOUNDARY = 70
"""Characters of a boundary (RFC 2046, section 5.1.1)."""


@dataclass
class Part:
    """One field of the form. `chunks` can be read once, before the next part is asked for."""

    name: str
    filename: str | None
    chunks: AsyncIterator[bytes] = field(repr=False)


def boundary_of(content_type: str) -> bytes:
    """The boundary that a `Content-Type` names. A problem (422) when there is none."""
    message = Message()
    message["content-type"] = content_type
    try:
        boundary = (message.get_boundary() or "").encode("ascii")
    except UnicodeEncodeError:
        boundary = b""
    if not 1 <= len(boundary) <= LONGEST_BOUNDARY:
        raise Problem(422, f"a multipart body needs a boundary of 1 to {LONGEST_BOUNDARY} characters in Content-Type")
    return boundary


async def parts(chunks: AsyncIterator[bytes], boundary: bytes) -> AsyncIterator[Part]:
    """The parts of a body, each before the next has been read. A problem (422) says where the body is broken."""
    reader = _Reader(chunks, b"\r\n--" + boundary)
    await reader.skip()  # what stands before the first boundary means nothing
    while not await reader.ended():
        name, filename = _disposition(await reader.headers())
        yield Part(name, filename, reader.body())
        await reader.skip()


def _disposition(headers: bytes) -> tuple[str, str | None]:
    """Name and file name of a part."""
    message = HeaderParser().parsestr(headers.decode("utf-8", "replace"))
    name = message.get_param("name", header="content-disposition")
    if message.get_content_disposition() != "form-data" or not isinstance(name, str):
        raise Problem(422, 'a part of the multipart body has no `Content-Disposition: form-data; name="…"`')
    return name, message.get_filename()


class _Reader:
    """A body cut at its boundaries; holds one chunk and a little more."""

    def __init__(self, chunks: AsyncIterator[bytes], delimiter: bytes) -> None:
        self.chunks, self.delimiter = chunks, delimiter
        self.buffer = bytearray(b"\r\n")  # so that a boundary at the very beginning looks like every other
        self.inside = True

    async def _more(self) -> None:
        try:
            self.buffer += await anext(self.chunks)
        except StopAsyncIteration:
            raise Problem(422, "the multipart body ends before its last boundary") from None

    async def body(self) -> AsyncIterator[bytes]:
        """What stands before the next boundary."""
        tail = len(self.delimiter) - 1  # so much may be the begin of a boundary
        while self.inside:
            at = self.buffer.find(self.delimiter)
            if at >= 0:
                piece = bytes(self.buffer[:at])
                del self.buffer[: at + len(self.delimiter)]
                self.inside = False
            elif len(self.buffer) > tail:
                piece = bytes(self.buffer[:-tail])
                del self.buffer[:-tail]
            else:
                await self._more()
                continue
            if piece:
                yield piece

    async def skip(self) -> None:
        """Go on behind the next boundary."""
        async for _ in self.body():
            pass

    async def ended(self) -> bool:
        """Whether the boundary that was just read is the last one; else its line is read."""
        while len(self.buffer) < 2:
            await self._more()
        if self.buffer.startswith(b"--"):
            return True
        if (await self._until(b"\r\n", LONGEST_PADDING)).strip(b" \t"):
            raise Problem(422, "the multipart body has other text on the line of a boundary")
        self.inside = True
        return False

    async def headers(self) -> bytes:
        """The headers of the part that begins here."""
        self.buffer[:0] = b"\r\n"  # so that a part without headers ends its headers like every other
        return (await self._until(b"\r\n\r\n", LONGEST_HEADERS))[2:]

    async def _until(self, end: bytes, longest: int) -> bytes:
        while (at := self.buffer.find(end)) < 0:
            if len(self.buffer) > longest:
                raise Problem(422, f"a line or header of the multipart body is longer than {longest} bytes")
            await self._more()
        found = bytes(self.buffer[:at])
        del self.buffer[: at + len(end)]
        return found
