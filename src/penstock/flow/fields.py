"""Reading one field from each record: `"price"` of a dictionary or an object, or whatever a function returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter, itemgetter
from typing import Any, TypeAlias

__all__ = ["Field", "column", "getter", "pick"]

Field: TypeAlias = str | Callable[[Any], Any]
"""A field's name (a key of a dictionary, an attribute of an object), or a function of the value."""


def pick(field: Field, value: Any) -> Any:
    """The field of one value. Raises `LookupError` that says which fields there are, or what the function raises."""
    if not isinstance(field, str):
        return field(value)
    if isinstance(value, Mapping):
        if field in value:
            return value[field]
        raise LookupError(f"no field {field!r} in the record; it has: {', '.join(map(str, value)) or 'none'}")
    try:
        return attrgetter(field)(value)
    except AttributeError:
        raise LookupError(f"no field {field!r}: the record is of type {type(value).__name__}") from None


def getter(field: Field) -> Callable[[Any], Any]:
    """`pick` with its first argument fixed."""
    return lambda value: pick(field, value)


def column(field: Field, values: list[Any]) -> list[Any]:
    """The field of every value, in a C loop. Raises whatever comes first, without saying for which value: go through
    them with `pick` then."""
    if not isinstance(field, str):
        return list(map(field, values))
    by_key = bool(values) and type(values[0]) is dict
    return list(map(itemgetter(field) if by_key else attrgetter(field), values))
