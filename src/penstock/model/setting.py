"""A model's settings: their schema in JSON-Schema words, and the values that are given for them."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from penstock.errors import UsageError

__all__ = ["TYPES", "Setting", "as_schema", "check_setting", "convert", "did_you_mean", "read_setting", "type_of"]

Failure = Callable[[str, str], UsageError]
"""(what is wrong, what to do) -> the error to raise."""

_KINDS: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}
TYPES = tuple(_KINDS)
"""The types of JSON Schema."""
_WORDS = ("type", "default", "description", "minimum", "maximum", "enum", "required")
_NUMERIC = ("integer", "number")
_NAMES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "null",
}
"""The types for people."""


class Setting(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What one setting of a model may be."""

    type: str
    """One of `TYPES`."""
    default: Any | None = None
    """What it is when nothing is given."""
    description: str = ""
    minimum: float | None = None
    maximum: float | None = None
    enum: list[Any] | None = None
    """The only values there are."""
    required: bool = False
    """It has to be given; then it has no default."""


def did_you_mean(word: str, known: Collection[str]) -> str:
    """`did you mean 'x'?`, or all that there is."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known are: {', '.join(sorted(known))}" if known else "there are none"


def type_of(value: Any) -> str | None:
    """The JSON-Schema type of a value; `None` when JSON has no such value."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return next((word for word, kind in _KINDS.items() if isinstance(value, kind)), None)


def read_setting(value: Any, fail: Failure) -> Setting:
    """A setting as an author declares it: its default, or a table of JSON-Schema words. `check_setting` has to follow:
    it sees whether they agree."""
    if not isinstance(value, dict):
        kind = type_of(value)
        if kind is None:
            raise fail(f"the default {value!r} is no value of JSON", "use text, a number, true or false, or a list")
        return Setting(type=kind, default=value)
    for word in value:
        if word not in _WORDS:
            raise fail(
                f"it says {word!r}, which is no word of its schema",
                f'{did_you_mean(word, _WORDS)} (a default that is a table: {{type = "object", default = …}})',
            )
    kind = value.get("type", type_of(value["default"]) if "default" in value else None)
    if kind is None:
        raise fail("it has neither a type nor a default", f"add type = one of: {', '.join(TYPES)}")
    for word, wanted in (("description", "string"), ("required", "boolean"), ("enum", "array")):
        if word in value and type_of(value[word]) != wanted:
            raise fail(f"{word} = {value[word]!r} is {type_of(value[word])}", f"it has to be {_NAMES[wanted]}")
    for word in ("minimum", "maximum"):
        if word in value and type_of(value[word]) not in _NUMERIC:
            raise fail(f"{word} = {value[word]!r} is not a number", "give a number")
    return Setting(**(value | {"type": kind}))


def check_setting(setting: Setting, fail: Failure) -> Setting:
    """The setting, its default in its type, when its parts agree with each other."""
    if setting.type not in TYPES:
        raise fail(f"type = {setting.type!r} is not known", did_you_mean(str(setting.type), TYPES))
    if (setting.minimum is not None or setting.maximum is not None) and setting.type not in _NUMERIC:
        raise fail(f"minimum and maximum are for numbers, and it is of type {setting.type}", "leave them out")
    if setting.minimum is not None and setting.maximum is not None and setting.minimum > setting.maximum:
        raise fail(f"minimum = {setting.minimum} is above maximum = {setting.maximum}", "turn them round")
    if setting.enum is not None and not setting.enum:
        raise fail("enum is empty", "list the values it may have, or leave enum out")
    if setting.required and setting.default is not None:
        raise fail("it is required and has a default", "leave out one of the two")
    bare = msgspec.structs.replace(setting, enum=None)
    for value in setting.enum or ():
        if (wrong := _refusal(bare, value)) is not None:
            raise fail(f"enum has {value!r}, and {wrong}", "make the values agree with the type")
    if setting.default is None:
        return setting
    if (wrong := _refusal(setting, setting.default)) is not None:
        raise fail(f"the default is {setting.default!r}, and {wrong}", "change the default or the schema")
    return msgspec.structs.replace(setting, default=_exact(setting, setting.default))


def convert(setting: Setting, given: Any) -> tuple[Any, str | None]:
    """A given value in the setting's type, and what is wrong with it (`None`: nothing).

    Text is read as JSON where the type is not text, because command lines give text.
    """
    value = given
    if given is None and setting.default is None and not setting.required and setting.type != "null":
        return None, None
    if isinstance(given, str) and setting.type != "string":
        try:
            value = msgspec.json.decode(given)
        except (msgspec.DecodeError, UnicodeEncodeError):
            return given, f"it has to be {_NAMES[setting.type]}"
    wrong = _refusal(setting, value)
    return (given, wrong) if wrong is not None else (_exact(setting, value), None)


def as_schema(settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The settings as a JSON Schema of the object that holds them."""
    properties: dict[str, Any] = {}
    for name, setting in settings.items():
        words = msgspec.to_builtins(setting)
        words.pop("required", None)
        properties[name] = words
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required := [name for name, setting in settings.items() if setting.required]:
        schema["required"] = required
    return schema | {"additionalProperties": not settings}


def _refusal(setting: Setting, value: Any) -> str | None:
    """Why a value of JSON is not one of the setting's; `None` when it is."""
    kind = type_of(value)
    whole = isinstance(value, float) and kind == "number" and value.is_integer()
    fits = kind == setting.type or (setting.type == "number" and kind == "integer")
    if not fits and not (setting.type == "integer" and whole):
        return f"it has to be {_NAMES[setting.type]}"
    if kind == "integer" and not -(2**63) <= value < 2**63:
        return "it is too large"
    if setting.minimum is not None and value < setting.minimum:
        return f"the minimum is {setting.minimum:g}"
    if setting.maximum is not None and value > setting.maximum:
        return f"the maximum is {setting.maximum:g}"
    if setting.enum is not None and not any(value == one and type_of(one) == kind for one in setting.enum):
        numeric = kind in _NUMERIC and any(value == one and type_of(one) in _NUMERIC for one in setting.enum)
        if not numeric:
            return f"it has to be one of: {', '.join(json.dumps(one) for one in setting.enum)}"
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return "it is no value of JSON"
    return None


def _exact(setting: Setting, value: Any) -> Any:
    """`3` of a number as `3.0`, `3.0` of an integer as `3`."""
    if setting.type == "number":
        return float(value)
    return int(value) if setting.type == "integer" else value
