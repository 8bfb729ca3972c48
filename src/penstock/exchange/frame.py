"""What travels between two executors: a fixed header and a payload, both under one checksum.

The payload's meaning is the codec's business. The header is little-endian:

magic 2s, version u8, kind u8, flags u16, channel u32, epoch term u64, epoch counter u64, seq u64, watermark i64,
origin i64, checkpoint u64, records u32, payload length u32, checksum u64

The checksum is XXH3-64 of the payload, seeded with XXH3-64 of the header before it: a flipped bit anywhere is found.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import TypeAlias

import msgspec
from xxhash import xxh3_64, xxh3_64_intdigest

from penstock.errors import ExchangeError
from penstock.flow.batch import MIN_TIME

MAGIC = b"PS"
VERSION = 1
_BODY = struct.Struct("<2sBBHIQQQqqQII")
_CHECKSUM = struct.Struct("<Q")
_CHECKED = _BODY.size
HEADER_BYTES = _BODY.size + _CHECKSUM.size
MAX_PAYLOAD = 2**32 - 1

Epoch: TypeAlias = tuple[int, int]
"""(leader term, counter): which incarnation of a channel somebody speaks for. Later is greater."""


class Kind(IntEnum):
    """What a frame is for."""

    DATA = 1
    """`records` records in the payload; `watermark` is the channel's after them, `origin` that of the batch."""
    WATERMARK = 2
    """Event time moved to `watermark`."""
    BARRIER = 3
    """Everything before belongs to checkpoint `checkpoint`."""
    END = 4
    """Nothing will follow on this channel."""
    ACK = 5
    """Consumer to producer: everything up to `seq` is consumed."""
    NACK = 6
    """Consumer to producer: send again from `seq` on."""
    HELLO = 7
    """A producer says that it is connected; `seq` is its next one."""
    REPLICA = 8
    """A message of `penstock.exchange.replica`, with its address."""


_KINDS: dict[int, Kind] = {int(kind): kind for kind in Kind}


class Header(msgspec.Struct, gc=False):
    """The fields of a frame that are not payload."""

    kind: Kind
    channel: int
    term: int = 0
    counter: int = 0
    seq: int = 0
    watermark: int = MIN_TIME
    """Milliseconds since 1970 UTC."""
    origin: int = 0
    """`Clock.time_ns()` when the oldest record entered the flow; 0 = unknown."""
    checkpoint: int = 0
    records: int = 0
    flags: int = 0
    """Free for the codec: how the payload is written."""

    @property
    def epoch(self) -> Epoch:
        """The channel's incarnation that this frame belongs to."""
        return (self.term, self.counter)


def encode(header: Header, payload: bytes | Sequence[bytes] = b"") -> bytes:
    """The frame's bytes. Several payload parts are joined. Raises `ExchangeError` when a field or the payload is too
    large for the format."""
    parts: Sequence[bytes] = (payload,) if isinstance(payload, bytes) else payload
    length = len(payload) if isinstance(payload, bytes) else sum(map(len, payload))
    try:
        body = _BODY.pack(
            MAGIC,
            VERSION,
            header.kind,
            header.flags,
            header.channel,
            header.term,
            header.counter,
            header.seq,
            header.watermark,
            header.origin,
            header.checkpoint,
            header.records,
            length,
        )
    except struct.error as error:
        raise ExchangeError(
            f"a frame cannot be written ({error}): {length} payload bytes, {header}",
            remedy="send smaller batches (batch_records)" if length > MAX_PAYLOAD else None,
        ) from None
    seed = xxh3_64_intdigest(body)
    if len(parts) == 1:
        return b"".join((body, _CHECKSUM.pack(xxh3_64_intdigest(parts[0], seed)), parts[0]))
    digest = xxh3_64(seed=seed)
    for part in parts:
        digest.update(part)
    return b"".join((body, _CHECKSUM.pack(digest.intdigest()), *parts))


def decode(frame: bytes | memoryview) -> tuple[Header, memoryview]:
    """The header, and a view of the payload (no copy: it keeps `frame` alive).

    Raises `ExchangeError` when the frame is cut, of another version, or damaged.
    """
    view = memoryview(frame)
    if len(view) < HEADER_BYTES:
        raise ExchangeError(f"a frame of {len(view)} bytes is shorter than its header ({HEADER_BYTES} bytes)")
    fields = _BODY.unpack_from(view)
    magic, version, kind, flags, channel, term, counter, seq, watermark, origin, checkpoint, records, length = fields
    if magic != MAGIC:
        raise ExchangeError(f"this is no frame: it starts with {magic!r} instead of {MAGIC!r}")
    if version != VERSION:
        raise ExchangeError(
            f"a frame of version {version} came in; this release reads version {VERSION}",
            remedy="run the same release of penstock on every node",
        )
    payload = view[HEADER_BYTES:]
    if len(payload) != length:
        raise ExchangeError(f"a frame was cut or joined: {len(payload)} payload bytes came in, {length} were announced")
    (checksum,) = _CHECKSUM.unpack_from(view, _CHECKED)
    if xxh3_64_intdigest(payload, xxh3_64_intdigest(view[:_CHECKED])) != checksum:
        raise ExchangeError(
            f"a frame is damaged: its checksum does not match (it says: channel {channel}, seq {seq}, {length} bytes)"
        )
    known = _KINDS.get(kind)
    if known is None:
        raise ExchangeError(f"a frame of unknown kind {kind} came in on channel {channel}")
    header = Header(known, channel, term, counter, seq, watermark, origin, checkpoint, records, flags)
    return header, payload


def restamp(frame: bytes, epoch: Epoch) -> bytes:
    """The same frame for a later incarnation of its channel. Raises `ExchangeError` when it is damaged."""
    header, payload = decode(frame)
    header.term, header.counter = epoch
    return encode(header, bytes(payload))
