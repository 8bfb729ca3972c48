"""Answers as JSON: what the service returns is encoded by msgspec, which is quick and knows its structs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response


def encode(value: Any) -> bytes:
    """`value` as JSON. What JSON has no form for is written as text: a record must never make a look-up fail."""
    try:
        return msgspec.json.encode(value, enc_hook=str)
    except (TypeError, ValueError, msgspec.MsgspecError):
        return msgspec.json.encode(_with_text_keys(value), enc_hook=str)


def _with_text_keys(value: Any) -> Any:
    """A copy in which mapping keys that JSON cannot hold (tuples, say) and lone surrogates are replaced."""
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): _with_text_keys(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_with_text_keys(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return value


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response, which ends its line: people read it in a terminal."""
    return Response(encode(value) + b"\n", status, headers=dict(headers or {}), media_type="application/json")
