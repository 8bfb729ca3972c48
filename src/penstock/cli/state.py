"""`penstock state`: look into the state of a keyed step."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.connection import DEFAULT_URL, Token, Url, call
from penstock.cli.output import Json, console, print_json, table, value_text
from penstock.errors import UsageError

if TYPE_CHECKING:
    from penstock.client import Client


class KeyType(StrEnum):
    """How the key on the command line is read."""

    STR = "str"
    INT = "int"
    JSON = "json"


def state(
    model: Annotated[str, typer.Argument(help="NAME or GROUP/NAME.", show_default=False)],
    step: Annotated[str, typer.Argument(help="A keyed step of it.", show_default=False)],
    key: Annotated[
        str | None, typer.Argument(help="The key; all keys when it is left out.", show_default=False)
    ] = None,
    type_: Annotated[KeyType, typer.Option("--type", help="How to read the key.")] = KeyType.STR,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="List at most so many keys.")] = 100,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Look up the value of a key, or list keys and values of a step."""
    if key is None:
        items = call(url, token, lambda client: pages(client, model, step, limit))
        if json:
            print_json(items)
        else:
            rows = ((value_text(item["key"]), value_text(item["value"])) for item in items)
            console().print(table(("key", "value"), rows))
        return
    wanted = read_key(key, type_)
    value = call(url, token, lambda client: client.state(model, step, wanted))
    if json:
        print_json({"key": wanted, "value": value})
    else:
        console().print(value_text(value), markup=False)


def pages(client: Client, model: str, step: str, limit: int) -> list[dict[str, Any]]:
    """The first `limit` entries, page by page."""
    items: list[dict[str, Any]] = []
    cursor = None
    while len(items) < limit:
        page = client.list_state(model, step, limit=min(1000, limit - len(items)), cursor=cursor)
        items += page["items"]
        cursor = page["cursor"]
        if cursor is None:
            break
    return items


def read_key(text: str, kind: KeyType) -> Any:
    """The key that the text stands for. Raises `UsageError`."""
    if kind is KeyType.STR:
        return text
    import msgspec

    try:
        return int(text) if kind is KeyType.INT else msgspec.json.decode(text)
    except (ValueError, msgspec.DecodeError) as error:
        raise UsageError(f"the key {text!r} is not of type {kind.value}: {error}") from None
