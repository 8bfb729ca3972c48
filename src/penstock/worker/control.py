"""The stream between a worker and its supervisor: length-prefixed msgpack of `penstock.worker.messages`."""

from __future__ import annotations

import asyncio
import selectors
import socket
import struct
import time
from collections.abc import Iterator

import msgspec

from penstock.errors import WorkerError
from penstock.worker.messages import AnyMessage, Message

_LENGTH = struct.Struct("<I")
MAX_MESSAGE = 256 * 2**20
"""A longer message (bytes) is refused by both sides."""
SEND_DEADLINE = 30.0
"""Seconds that a worker waits for a supervisor that does not read."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def encode_message(message: Message) -> bytes:
    """A message with its length in front. Raises `WorkerError` when it is too long."""
    body = _encoder.encode(message)
    if len(body) > MAX_MESSAGE:
        raise WorkerError(f"a {type(message).__name__} message of {len(body):,} bytes is over {MAX_MESSAGE:,}")
    return _LENGTH.pack(len(body)) + body


class MessageBuffer:
    """Bytes in, messages out; pure."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[AnyMessage]:
        """The messages that are complete once `data` has arrived. Raises `WorkerError` for anything else."""
        self._data += data
        while len(self._data) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._data)
            if size > MAX_MESSAGE:
                raise WorkerError(f"a control message announces {size:,} bytes; the other side is not Penstock")
            end = _LENGTH.size + size
            if len(self._data) < end:
                return
            body = bytes(self._data[_LENGTH.size : end])
            del self._data[:end]
            try:
                yield _decoder.decode(body)
            except msgspec.MsgspecError as error:
                raise WorkerError(f"a control message cannot be read: {error}") from error


class WorkerControl:
    """The worker's end: reads without blocking, writes with a deadline."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.setblocking(False)
        self._buffer = MessageBuffer()
        self.closed = False

    def fileno(self) -> int:
        """For pollers."""
        return self._socket.fileno()

    def receive(self) -> list[AnyMessage]:
        """All complete messages that have arrived; sets `closed` once the supervisor is gone."""
        messages: list[AnyMessage] = []
        while True:
            try:
                data = self._socket.recv(1 << 18)
            except BlockingIOError:
                return messages
            except OSError:
                data = b""
            if not data:
                self.closed = True
                return messages
            messages.extend(self._buffer.feed(data))

    def send(self, message: Message) -> None:
        """Hand a message over. A supervisor that is gone sets `closed`; one that never reads raises `WorkerError`."""
        data = memoryview(encode_message(message))
        deadline = time.monotonic() + SEND_DEADLINE
        while data and not self.closed:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                self._wait_writable(deadline)
            except OSError:
                self.closed = True

    def _wait_writable(self, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_WRITE)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise WorkerError(f"the supervisor has not read for {SEND_DEADLINE:.0f} s")

    def close(self) -> None:
        """Close the stream; the supervisor sees end-of-file."""
        self.closed = True
        self._socket.close()


class SupervisorControl:
    """The supervisor's end, in asyncio."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._buffer = MessageBuffer()
        self._ready: list[AnyMessage] = []

    @classmethod
    async def open(cls, sock: socket.socket) -> SupervisorControl:
        """Wrap a connected stream socket."""
        reader, writer = await asyncio.open_connection(sock=sock)
        return cls(reader, writer)

    async def receive(self) -> AnyMessage | None:
        """The next message; `None` when the worker is gone."""
        while not self._ready:
            try:
                data = await self._reader.read(1 << 18)
            except OSError:
                return None
            if not data:
                return None
            self._ready = list(self._buffer.feed(data))
        return self._ready.pop(0)

    async def send(self, message: Message) -> None:
        """Hand a message over. Raises `WorkerError` when the worker is gone."""
        try:
            self._writer.write(encode_message(message))
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise WorkerError(f"the worker is gone: {error}") from error

    async def close(self) -> None:
        """Close the stream; the worker sees end-of-file and exits."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            pass
