"""Which executor a record belongs to: key -> hash -> key group -> executor.

The hash is a promise: checkpoints, moves and splits all name key groups, so the same key must land in the same group in
every process, on every machine and in every later release. `tests/exchange/test_keys.py` pins values.

Keys that Python calls equal hash equal (`1 == 1.0 == True`, `0.0 == -0.0`, a named tuple and the tuple, a `StrEnum`
member and its text, an instant in two time zones), because a state dictionary would not tell them apart either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from itertools import compress
from typing import Any, TypeAlias
from uuid import UUID

import msgspec
from xxhash import xxh3_64_intdigest

from penstock.errors import ExchangeError
from penstock.settings import KEY_GROUPS

# A top-level `str` is encoded as its UTF-8, without a tag: by far the most frequent key, hashed without a copy. Bytes
# from 0xF5 on never start UTF-8, so the tags below cannot be mistaken for text.
_TEXT = b"\xf5"
_BYTES = b"\xf6"
_INT = b"\xf7"
_FLOAT = b"\xf8"
_NONE = b"\xf9"
_TUPLE = b"\xfa"
_INSTANT = b"\xfb"
_LOCAL_TIME = b"\xfc"
_DATE = b"\xfd"
_MEMBER = b"\xfe"
_OBJECT = b"\xff"

_LOCAL_EPOCH = datetime(1970, 1, 1)  # of naive local times: no zone on purpose
_MICROSECOND = timedelta(microseconds=1)


def _int(key: int) -> bytes:
    return _INT + key.to_bytes((key.bit_length() + 8) // 8, "little", signed=True)


def _float(key: float) -> bytes:
    if key.is_integer():
        return _int(int(key))
    return _FLOAT + (repr(key) if key == key else "nan").encode()


def _decimal(key: Decimal) -> bytes:
    if not key.is_finite():
        return _float(float(key))
    numerator, denominator = key.as_integer_ratio()
    if denominator == 1:
        return _int(numerator)
    near = float(key)
    return _float(near) if near == key else _sequence(_OBJECT, ["Decimal", numerator, denominator])


def _datetime(key: datetime) -> bytes:
    # `datetime.__eq__` and `__hash__` ignore `fold`, and compare aware times by the instant.
    plain = key.replace(fold=0)
    offset = plain.utcoffset()
    since = plain.replace(tzinfo=None) - _LOCAL_EPOCH
    if offset is None:
        return _LOCAL_TIME + _int(since // _MICROSECOND)
    return _INSTANT + _int((since - offset) // _MICROSECOND)


def _sequence(tag: bytes, items: Sequence[Any]) -> bytes:
    parts = [tag, len(items).to_bytes(4, "little")]
    for item in items:
        encoded = _encode(item, nested=True)
        parts += (len(encoded).to_bytes(4, "little"), encoded)
    return b"".join(parts)


def _is_frozen(cls: type) -> bool:
    """Whether instances are compared by their fields and cannot change: only then can they be keys."""
    if issubclass(cls, msgspec.Struct):
        return bool(cls.__struct_config__.frozen and cls.__struct_config__.eq)
    params = getattr(cls, "__dataclass_params__", None)
    return params is not None and bool(params.frozen and params.eq)


def _object(key: Any) -> bytes:
    """A frozen record: its class name and the fields that equality looks at. The module is left out: the same file can
    be imported under several module names."""
    cls = type(key)
    names: Sequence[str]
    if isinstance(key, msgspec.Struct):
        names = key.__struct_fields__
    else:
        names = [field.name for field in dataclasses.fields(key) if field.compare]
    return _sequence(_OBJECT, [cls.__qualname__, *(getattr(key, name) for name in names)])


def _encode(key: Any, nested: bool = False) -> bytes:
    """The canonical bytes of a key."""
    if isinstance(key, str):
        text = key.encode("utf-8", "surrogatepass")
        return _TEXT + text if nested else text
    if isinstance(key, int):
        return _int(key)
    if isinstance(key, float):
        return _float(key)
    if isinstance(key, bytes):
        return _BYTES + key
    if key is None:
        return _NONE
    if isinstance(key, tuple):
        return _sequence(_TUPLE, key)
    if isinstance(key, datetime):
        return _datetime(key)
    if isinstance(key, date):
        return _DATE + _int(key.toordinal())
    if isinstance(key, Enum):
        return _sequence(_MEMBER, [type(key).__qualname__, key.name])
    if isinstance(key, Decimal):
        return _decimal(key)
    if isinstance(key, UUID):
        return _sequence(_OBJECT, ["UUID", key.bytes])
    if _is_frozen(type(key)):
        return _object(key)
    raise ExchangeError(
        f"a key of type {type(key).__module__}.{type(key).__qualname__} cannot be used: {_shorten(key)}",
        remedy=_REMEDY,
    )


_REMEDY = (
    "a key is text, a number, bytes, a date or datetime, None, a UUID, an Enum member, a frozen dataclass or Struct, or"
    " a tuple of these; make one of them in the function given to key_by"
)


def _shorten(key: Any) -> str:
    text = repr(key)
    return text if len(text) <= 80 else text[:77] + "..."


def key_hash(key: Hashable) -> int:
    """The stable hash of a key: XXH3-64 (seed 0) of its canonical bytes, 0 to 2**64 - 1.

    Raises `ExchangeError` for a type that has no canonical bytes, naming it.
    """
    if type(key) is str:  # the path of most keys
        return xxh3_64_intdigest(key.encode("utf-8", "surrogatepass"))
    return xxh3_64_intdigest(_encode(key))


def key_group(key: Hashable) -> int:
    """The key's group, 0 to `KEY_GROUPS` - 1, the same for ever."""
    return key_hash(key) % KEY_GROUPS


def owner(group: int, executors: int) -> int:
    """The executor that owns a group unless a split said otherwise: each owns a contiguous range, of sizes that differ
    by at most one."""
    return group * executors // KEY_GROUPS


@cache
def even_routing(executors: int) -> tuple[int, ...]:
    """The default routing table: group -> executor."""
    if not 1 <= executors <= KEY_GROUPS:
        raise ExchangeError(
            f"{executors} executors cannot share {KEY_GROUPS} key groups",
            remedy=f"use 1 to {KEY_GROUPS} executors for a keyed step",
        )
    return tuple(owner(group, executors) for group in range(KEY_GROUPS))


def owned_groups(index: int, executors: int) -> range:
    """The groups of executor `index` in the default routing."""
    return range(-(-index * KEY_GROUPS // executors), -(-(index + 1) * KEY_GROUPS // executors))


MEMO_KEYS = 1 << 16
"""A router remembers at most this many keys, then it starts to remember anew."""

Part: TypeAlias = tuple[int, list[Any], list[Any] | None, list[int] | None]
"""(executor, keys, values, times) of the records of a batch that go to one executor."""


class _Memo(dict[Any, int]):
    """key -> executor, computed on the first look."""

    __slots__ = ("routing",)

    def __init__(self, routing: tuple[int, ...]) -> None:
        self.routing = routing

    def __missing__(self, key: Any) -> int:
        executor = self.routing[key_hash(key) % KEY_GROUPS]
        if len(self) >= MEMO_KEYS:
            self.clear()
        self[key] = executor
        return executor


class Router:
    """Splits batches by key. `routing` (group -> executor, one entry per key group) replaces the default table, after
    a split of an executor."""

    __slots__ = ("_masks", "_memo", "executors", "routing")

    def __init__(self, executors: int, routing: tuple[int, ...] | None = None) -> None:
        default = even_routing(executors)
        self.executors = executors
        self.routing = default if routing is None else routing
        if len(self.routing) != KEY_GROUPS or not all(0 <= e < executors for e in self.routing):
            raise ExchangeError(
                f"a routing table names one of executors 0 to {executors - 1} for each of {KEY_GROUPS} key groups;"
                f" this one has {len(self.routing)} entries: {_shorten(self.routing)}"
            )
        self._memo = _Memo(self.routing)
        self._masks = [_mask(executor) for executor in range(executors)] if executors <= _MASK_UP_TO else []

    def executor(self, key: Hashable) -> int:
        """Where one key goes."""
        return self._memo[key]

    def split(self, keys: list[Any], values: list[Any] | None, times: list[int] | None) -> list[Part]:
        """The batch cut by executor, in order of executor; each part keeps the order of its records.

        Executors without a record are left out. When all records go to one executor, its part holds the given lists
        themselves. `values is keys` stays true in every part. Raises `ExchangeError` for a key that cannot be hashed.
        """
        if not keys:
            return []
        if self.executors == 1:
            return [(0, keys, values, times)]
        targets = self._targets(keys)
        if targets.count(targets[0]) == len(targets):
            return [(targets[0], keys, values, times)]
        if not self._masks:
            return _scatter(targets, keys, values, times)
        return [
            _select(executor, targets.translate(mask), keys, values, times)
            for executor, mask in enumerate(self._masks)
            if executor in targets
        ]

    def _targets(self, keys: list[Any]) -> bytes:
        """The executor of each key, one byte each (there are at most 256)."""
        memo = self._memo
        try:
            return bytes(map(memo.get, keys))  # type: ignore[arg-type]  # a None, for a new key, is the TypeError
        except TypeError:
            pass
        try:
            return bytes(map(memo.__getitem__, keys))
        except TypeError as error:
            raise ExchangeError(_unhashable(keys, error), remedy=_REMEDY) from None


_MASK_UP_TO = 6
"""Up to so many executors, a pass per executor in C is faster than one pass over the records in Python (measured)."""


@cache
def _mask(executor: int) -> bytes:
    """A translation table that turns `executor` into 1 and everything else into 0."""
    return bytes(byte == executor for byte in range(256))


def _select(executor: int, mask: bytes, keys: list[Any], values: list[Any] | None, times: list[int] | None) -> Part:
    own = list(compress(keys, mask))
    return (
        executor,
        own,
        own if values is keys else None if values is None else list(compress(values, mask)),
        None if times is None else list(compress(times, mask)),
    )


def _scatter(targets: bytes, keys: list[Any], values: list[Any] | None, times: list[int] | None) -> list[Part]:
    """One pass over the records, whatever the number of executors."""
    buckets: dict[int, list[int]] = {executor: [] for executor in sorted(set(targets))}
    put = {executor: bucket.append for executor, bucket in buckets.items()}
    for place, executor in enumerate(targets):
        put[executor](place)
    parts: list[Part] = []
    for executor, chosen in buckets.items():
        own = [keys[place] for place in chosen]
        parts.append(
            (
                executor,
                own,
                own if values is keys else None if values is None else [values[place] for place in chosen],
                None if times is None else [times[place] for place in chosen],
            )
        )
    return parts


def _unhashable(keys: list[Any], error: TypeError) -> str:
    for key in keys:
        try:
            hash(key)
        except TypeError:
            return f"a key of type {type(key).__qualname__} cannot be used ({error}): {_shorten(key)}"
    return f"a key cannot be used: {error}"
