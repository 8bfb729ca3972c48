"""Bytes of the replicated data plane.

Executors exchange **bodies**: what a frame says, without who says it. A body is numbered, kept, forwarded and digested
as it is; only the letter around it names epochs, so a promoted replica sends the same bodies again. A **letter** is a
message of `penstock.exchange.replica` with an address, in one frame with a checksum.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec

from penstock.exchange.frame import Header, Kind, encode
from penstock.exchange.replica.messages import (
    Ack,
    Applied,
    AskInput,
    AskLog,
    AskSnapshot,
    Checkpoint,
    Confirm,
    Data,
    Handover,
    Hello,
    Input,
    Log,
    Resume,
    Warm,
)
from penstock.flow.batch import MIN_TIME

_HEAD = struct.Struct("<BHqqQI")

SHIFT = 32
"""The kind of bodies that say something of `penstock.exchange.split`; it is none of `Kind`."""

AnyReplicaMessage = (
    Data | Hello | Confirm | Resume | Log | Input | Checkpoint | Warm | Handover
    | Ack | Applied | AskLog | AskInput | AskSnapshot
)  # fmt: skip


class Body(NamedTuple):
    """What one frame between two executors says; see `penstock.exchange.frame` for the fields."""

    kind: int
    flags: int
    watermark: int
    origin: int
    checkpoint: int
    records: int
    payload: memoryview


def write_body(
    kind: int,
    payload: bytes = b"",
    *,
    watermark: int = MIN_TIME,
    flags: int = 0,
    origin: int = 0,
    checkpoint: int = 0,
    records: int = 0,
) -> bytes:
    """A body as bytes."""
    return _HEAD.pack(kind, flags, watermark, origin, checkpoint, records) + payload


def read_body(data: bytes) -> Body:
    """The inverse of `write_body`; the payload is a view."""
    kind, flags, watermark, origin, checkpoint, records = _HEAD.unpack_from(data)
    return Body(kind, flags, watermark, origin, checkpoint, records, memoryview(data)[_HEAD.size :])


def kind_of(data: bytes) -> int:
    """The kind of a body, without reading the rest."""
    return data[0]


class Letter(msgspec.Struct, frozen=True, array_like=True):
    """A message to the replica of an executor in another worker."""

    stage: int
    index: int
    sender: str
    """The replica that wrote it."""
    message: AnyReplicaMessage


_decoder = msgspec.msgpack.Decoder(Letter)
_encoder = msgspec.msgpack.Encoder()


def write_letter(model: int, letter: Letter) -> bytes:
    """A letter as a frame of model number `model`."""
    return encode(Header(Kind.REPLICA, model << 16), _encoder.encode(letter))


def read_letter(payload: memoryview) -> Letter:
    """The letter in a frame's payload. Raises `msgspec.MsgspecError`."""
    return _decoder.decode(payload)
