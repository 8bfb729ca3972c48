"""`--set key=value`: configuration from the command line."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from penstock.errors import UsageError

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Configuration; VALUE is JSON or plain text. Repeatable."),
]


def assignments(texts: list[str] | None, option: str = "--set") -> dict[str, Any]:
    """`["n=3", "name=x"]` as `{"n": 3, "name": "x"}`. Raises `UsageError` for what is not an assignment."""
    import msgspec

    values: dict[str, Any] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(
                f"{option} {text!r} is not an assignment", remedy=f"write {option} KEY=VALUE, for instance {option} n=3"
            )
        if key in values:
            raise UsageError(f"{option} gives {key!r} twice")
        try:
            values[key] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            values[key] = value
    return values
