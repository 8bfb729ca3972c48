"""Records as JSON, one way for every sink, and JSON lines as records.

`Keyed` becomes `{"key": …, "value": …}`; datetimes ISO 8601; bytes base64; sets and tuples arrays; Structs and
dataclasses objects; Decimals and UUIDs strings; not-a-number and infinity null (JSON has neither).
"""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import msgspec

from penstock.errors import CodecError
from penstock.flow.batch import Keyed


def _unusual(value: Any) -> Any:
    """Values that the encoder does not know: numpy-like scalars and arrays by their own plain form."""
    for plain in ("tolist", "to_list", "item"):
        method = getattr(value, plain, None)
        if callable(method):
            return method()
    raise CodecError(
        f"a record holds a {type(value).__module__}.{type(value).__qualname__}, which JSON cannot express",
        remedy="map it to text, numbers, lists or dictionaries before the sink",
    )


_encoder = msgspec.json.Encoder(enc_hook=_unusual)


def jsonable(record: Any) -> Any:
    """The record with `Keyed` pairs as objects, to any depth of values; the rest is left to the encoder."""
    if type(record) is Keyed:
        return {"key": record.key, "value": jsonable(record.value)}
    return record


def _plain(value: Any) -> Any:
    """The slow way for values whose dictionaries have keys that are not text: every such key becomes its JSON text."""
    if type(value) is Keyed:
        return {"key": _plain(value.key), "value": _plain(value.value)}
    if isinstance(value, dict):
        return {_member_name(k): _plain(v) for k, v in value.items()}
    if isinstance(value, msgspec.Struct):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    return value


def _member_name(key: Any) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, bytes):
        return base64.b64encode(key).decode("ascii")
    return _encoder.encode(_plain(key)).decode("utf-8").strip('"')


def encode(record: Any) -> bytes:
    """One record as JSON text in UTF-8, without a line end. Raises `CodecError` when JSON cannot express it."""
    try:
        return _encoder.encode(jsonable(record))
    except (TypeError, RecursionError, ValueError, CodecError):
        return _slowly(record)


def encode_lines(records: list[Any]) -> bytes:
    """Records as JSON lines, each ended by a newline. Raises `CodecError`."""
    try:
        return _encoder.encode_lines([jsonable(r) if type(r) is Keyed else r for r in records])
    except (TypeError, RecursionError, ValueError, CodecError):
        return b"".join(_slowly(record) + b"\n" for record in records)


def _slowly(record: Any) -> bytes:
    try:
        return _encoder.encode(_plain(record))
    except (TypeError, RecursionError, ValueError) as error:
        raise CodecError(
            f"a {type(record).__name__} cannot be written as JSON: {error or type(error).__name__}",
            remedy="map it to text, numbers, lists or dictionaries before the sink",
        ) from error


def text_line(record: Any) -> str:
    """A record as one line of text: text as it is (line ends escaped), anything else as JSON."""
    if type(record) is str:
        if "\n" in record or "\r" in record:
            return record.replace("\r", "\\r").replace("\n", "\\n")
        return record
    return encode(record).decode("utf-8")


def text_lines(records: list[Any]) -> bytes:
    """Records as lines of text in UTF-8, each ended by a newline."""
    try:
        text = "\n".join(records)
    except TypeError:
        return "".join(f"{text_line(record)}\n" for record in records).encode("utf-8", "backslashreplace")
    if text.count("\n") != len(records) - 1 or "\r" in text:
        text = "\n".join(map(text_line, records))
    return f"{text}\n".encode("utf-8", "backslashreplace") if records else b""
