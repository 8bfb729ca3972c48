"""Records to bytes and back, column by column; no code of anybody runs when bytes are decoded.

A list of values becomes a small plain tree (`pack`), the tree becomes msgpack (`encode`). Values that msgpack keeps
exactly (str, int, float, bool, None, bytes and lists and dicts of them) go as they are; everything else goes by
columns: all first fields, all second fields … A record that crossed a process equals the one that was sent, tuples and
datetimes included, and the cost per record stays in C loops.

Classes (msgspec Structs, dataclasses, named tuples, enums) travel by name, `module:qualname`, and are only looked up
among the modules that the receiving process has imported by itself.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import functools
import inspect
import sys
import uuid
from collections.abc import Callable, Iterable
from enum import Enum
from itertools import chain, islice
from operator import attrgetter
from typing import Any

import msgspec

from penstock.errors import CodecError

_ATOMS = frozenset({str, int, float, bool, type(None), bytes})
_INT64 = (-(2**63), 2**64 - 1)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()

encode = _encoder.encode
"""A plain tree as msgpack bytes."""
decode: Callable[[bytes | bytearray | memoryview], Any] = _decoder.decode
"""msgpack bytes as a plain tree."""

_TEXT_TYPES: dict[type, tuple[str, Callable[[Any], str], Callable[[str], Any]]] = {
    dt.datetime: ("datetime", dt.datetime.isoformat, dt.datetime.fromisoformat),
    dt.date: ("date", dt.date.isoformat, dt.date.fromisoformat),
    dt.time: ("time", dt.time.isoformat, dt.time.fromisoformat),
    decimal.Decimal: ("decimal", str, decimal.Decimal),
    uuid.UUID: ("uuid", str, uuid.UUID),
}
_TEXT_LOADERS = {name: load for name, _, load in _TEXT_TYPES.values()}
_SEQUENCES: dict[str, Callable[[Iterable[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "bytearray": bytearray,
}


def pack(values: list[Any]) -> list[Any]:
    """The values as a plain tree for `encode`. Raises `CodecError` for a type that cannot travel, naming it."""
    kinds = set(map(type, values))
    if _is_plain(values, kinds):
        return ["p", values]
    if len(kinds) == 1:
        return _pack_kind(values, kinds.pop())
    order = sorted(kinds, key=lambda kind: f"{kind.__module__}:{kind.__qualname__}")
    number = {kind: i for i, kind in enumerate(order)}
    which = [number[type(value)] for value in values]
    return ["x", which, [pack([v for v in values if type(v) is kind]) for kind in order]]


def unpack(node: list[Any]) -> list[Any]:
    """The inverse of `pack`. Raises `CodecError` when the tree is not one of `pack`'s or names an unknown class."""
    try:
        tag = node[0]
        if tag == "p":
            return list(node[1]) if not isinstance(node[1], list) else node[1]
        return _UNPACK[tag](*node[1:])
    except CodecError:
        raise
    except (LookupError, TypeError, ValueError) as error:
        raise CodecError(f"these bytes are not records of Penstock: {type(error).__name__}: {error}") from error


def dumps(value: Any) -> bytes:
    """One value as bytes."""
    return encode(pack([value]))


def loads(data: bytes | bytearray | memoryview) -> Any:
    """The inverse of `dumps`. Raises `CodecError`."""
    try:
        tree = decode(data)
    except msgspec.DecodeError as error:
        raise CodecError(f"these bytes are not msgpack: {error}") from error
    return unpack(tree)[0]


def _is_plain(values: Iterable[Any], kinds: set[type]) -> bool:
    """Whether msgpack gives back exactly these values."""
    if int in kinds and not _ints_fit(values, kinds):
        return False
    if kinds <= _ATOMS:
        return True
    if not kinds <= _ATOMS | {dict, list}:
        return False
    inner: list[Any] = []
    for value in values:
        if type(value) is dict:
            inner.extend(value)
            inner.extend(value.values())
        elif type(value) is list:
            inner.extend(value)
    return _is_plain(inner, set(map(type, inner)))


def _ints_fit(values: Iterable[Any], kinds: set[type]) -> bool:
    numbers = values if kinds == {int} else [value for value in values if type(value) is int]
    return min(numbers) >= _INT64[0] and max(numbers) <= _INT64[1]


def _pack_kind(values: list[Any], kind: type) -> list[Any]:
    """A column of one type that is not plain."""
    text = _TEXT_TYPES.get(kind)
    if text is not None:
        return ["d", text[0], list(map(text[1], values))]
    if kind is dict:
        return _pack_dicts(values)
    if kind is tuple and len(set(map(len, values))) == 1:
        return ["t", len(values), [pack(list(column)) for column in zip(*values, strict=True)]]
    if kind.__name__ in _SEQUENCES and kind.__module__ == "builtins":
        items = [sorted(v, key=repr) for v in values] if kind in (set, frozenset) else values
        return ["l", kind.__name__, list(map(len, items)), pack(list(chain.from_iterable(items)))]
    if kind is int:
        return ["i", list(map(str, values))]
    if kind is dt.timedelta:
        return ["td", [[v.days, v.seconds, v.microseconds] for v in values]]
    if issubclass(kind, Enum):
        return ["e", _class_name(kind), pack([value.value for value in values])]
    fields = class_fields(kind)
    if fields is not None:
        columns = [pack(list(map(attrgetter(name), values))) for name in fields]
        return ["s", _class_name(kind), len(values), list(fields), columns]
    return _pack_subclass(values, kind)


def _pack_subclass(values: list[Any], kind: type) -> list[Any]:
    """Numbers of other libraries (numpy …) and subclasses of plain types travel as the plain type."""
    item = getattr(kind, "item", None)
    if item is not None and kind.__module__.partition(".")[0] == "numpy":
        return pack([value.item() for value in values])
    for plain in (bool, int, float, str, bytes, dict, list):
        if issubclass(kind, plain):
            return pack(list(map(plain, values)))
    raise CodecError(
        f"a value of type {kind.__module__}.{kind.__qualname__} cannot travel between processes: {values[0]!r:.120}",
        remedy="use str, numbers, bytes, lists, tuples, sets, dicts, datetimes, a msgspec.Struct or a dataclass",
    )


def _pack_dicts(values: list[dict[Any, Any]]) -> list[Any]:
    """Dicts with at least one value or key that is not plain: by columns when all have the same keys."""
    names = list(values[0])
    if all(type(name) is str for name in names) and all(list(value) == names for value in values):
        return ["m", names, len(values), [pack([value[name] for value in values]) for name in names]]
    keys, items = chain.from_iterable(values), chain.from_iterable(value.values() for value in values)
    return ["g", list(map(len, values)), pack(list(keys)), pack(list(items))]


def class_fields(kind: type) -> tuple[str, ...] | None:
    """The field names of a Struct, dataclass or named tuple; `None` for any other class."""
    if issubclass(kind, msgspec.Struct):
        return kind.__struct_fields__
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return tuple(kind._fields)
    return None


def _class_name(kind: type) -> str:
    if "<locals>" in kind.__qualname__:
        raise CodecError(
            f"class {kind.__qualname__} is defined inside a function, so no other process can find it",
            remedy="define it at the top level of its module",
        )
    return f"{kind.__module__}:{kind.__qualname__}"


def find_class(name: str) -> type:
    """The class that travelled as `name`, among the modules that are already imported. Raises `CodecError`."""
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type) or (class_fields(found) is None and not issubclass(found, Enum)):
        raise CodecError(
            f"records name the class {name}, which this process does not know",
            remedy="define it in the flow's own module, or import its module there",
        )
    return found


def _chunks(lengths: list[int], flat: list[Any]) -> Iterable[list[Any]]:
    items = iter(flat)
    return (list(islice(items, length)) for length in lengths)


def _unpack_mixed(which: list[int], columns: list[Any]) -> list[Any]:
    iterators = [iter(unpack(column)) for column in columns]
    return [next(iterators[i]) for i in which]


def _unpack_struct(name: str, count: int, fields: list[str], columns: list[Any]) -> list[Any]:
    kind = find_class(name)
    values = [unpack(column) for column in columns]
    if tuple(fields) != class_fields(kind):
        raise CodecError(
            f"records of class {name} were written with the fields {fields}, but the class has {class_fields(kind)}",
            remedy="bring the class back, or start without the old checkpoint",
        )
    if not fields:
        return [kind() for _ in range(count)]
    rows = zip(*values, strict=True)
    if _positional(kind):
        return [kind(*row) for row in rows]
    return [_restore(kind, dict(zip(fields, row, strict=True))) for row in rows]


@functools.cache
def _positional(kind: type) -> bool:
    """Whether the class takes exactly its fields, in order."""
    parameters = list(inspect.signature(kind).parameters.values())
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == list(class_fields(kind) or ())


def _restore(kind: type, fields: dict[str, Any]) -> Any:
    if dataclasses.is_dataclass(kind):
        value = object.__new__(kind)
        for name, content in fields.items():
            object.__setattr__(value, name, content)
        return value
    return kind(**fields)


def _unpack_dicts(names: list[str], count: int, columns: list[Any]) -> list[Any]:
    values = [unpack(column) for column in columns]
    if not names:
        return [{} for _ in range(count)]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def _unpack_maps(lengths: list[int], keys: Any, items: Any) -> list[Any]:
    pairs = zip(_chunks(lengths, unpack(keys)), _chunks(lengths, unpack(items)), strict=True)
    return [dict(zip(k, v, strict=True)) for k, v in pairs]


_UNPACK: dict[str, Callable[..., list[Any]]] = {
    "x": _unpack_mixed,
    "d": lambda name, texts: list(map(_TEXT_LOADERS[name], texts)),
    "m": _unpack_dicts,
    "g": _unpack_maps,
    "t": lambda count, columns: list(zip(*map(unpack, columns), strict=True)) if columns else [()] * count,
    "l": lambda name, lengths, flat: list(map(_SEQUENCES[name], _chunks(lengths, unpack(flat)))),
    "i": lambda texts: list(map(int, texts)),
    "td": lambda parts: [dt.timedelta(days, seconds, micro) for days, seconds, micro in parts],
    "e": lambda name, values: list(map(find_class(name), unpack(values))),
    "s": _unpack_struct,
}
