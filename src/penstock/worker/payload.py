"""Batches as the payload of a frame, and back."""

from __future__ import annotations

import io
from typing import Any

import msgspec

from penstock import codec
from penstock.errors import CodecError
from penstock.flow.batch import Batch, Columns, Rows

COLUMNS = 1
"""Frame flag: the payload is an Arrow IPC stream."""

_SAME = 0
"""In place of the values: they are the keys."""


def encode_rows(values: list[Any] | None, keys: list[Any] | None, times: list[int] | None) -> bytes:
    """Rows as bytes; `values is keys` and `values is None` (not needed by the receiver) cost nothing."""
    packed = None if values is None else _SAME if values is keys else codec.pack(values)
    return codec.encode((None if keys is None else codec.pack(keys), packed, times))


def encode_columns(batch: Columns) -> bytes:
    """A frame as bytes."""
    sink = io.BytesIO()
    batch.frame.write_ipc_stream(sink)
    return codec.encode((batch.key, batch.time)) + sink.getvalue()


def decode_batch(payload: memoryview, flags: int, lane: int, origin: int) -> Batch:
    """The batch of a frame. Raises `CodecError`."""
    if flags & COLUMNS:
        return _decode_columns(payload, lane, origin)
    try:
        keys_node, values_node, times = codec.decode(payload)
    except (msgspec.DecodeError, ValueError) as error:
        raise CodecError(f"a frame's payload is not a batch: {error}") from error
    keys = None if keys_node is None else codec.unpack(keys_node)
    if values_node == _SAME or (values_node is None and keys is not None):
        assert keys is not None
        return Rows(keys, keys, times, lane, origin)
    return Rows(codec.unpack(values_node), keys, times, lane, origin)


def _decode_columns(payload: memoryview, lane: int, origin: int) -> Columns:
    import polars as pl

    body = bytes(payload)
    # The two names are a fixarray of nil/str and end where the Arrow stream's continuation marker begins.
    start = body.index(b"\xff\xff\xff\xff")
    key, time = codec.decode(body[:start])
    frame = pl.read_ipc_stream(io.BytesIO(body[start:]))
    return Columns(frame, key, time, lane, origin)
