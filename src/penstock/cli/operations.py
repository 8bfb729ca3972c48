"""`penstock operations`: changes of models as they go through the cluster."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from penstock.cli.connection import DEFAULT_URL, Token, Url, call
from penstock.cli.output import Json, console, print_json, table
from penstock.errors import UsageError

COLOURS = {"done": "green", "rolled back": "bold red"}


def operations(
    id: Annotated[str | None, typer.Argument(help="One operation; without, all of late.", show_default=False)] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Roll it back, if it is not decided yet.")] = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Show the changes of models that go on, and those that ended a short while ago."""
    if id is None:
        if cancel:
            raise UsageError("--cancel needs the id of an operation", remedy="`penstock operations` lists them")
        _list(call(url, token, lambda client: client.operations()), json)
        return
    wanted = id
    found = call(url, token, lambda client: client.cancel_operation(wanted) if cancel else client.operation(wanted))
    if json:
        print_json(found)
        return
    out = console()
    out.print(outcome(found), markup=False)
    out.print(table(("node", "says"), found["nodes"].items()))


def _list(found: list[dict[str, Any]], json: bool) -> None:
    if json:
        print_json(found)
        return
    from rich.text import Text

    from penstock.client.changes import awaited

    out = console()
    if not found:
        out.print("nothing is being changed")
        return
    rows = (
        (o["id"], o["kind"], o["model"], Text(state(o), COLOURS.get(state(o), "yellow")), age(o["started"]), o["user"],
         ", ".join(awaited(o)) if not o["settled"] else o["reason"])
        for o in found
    )  # fmt: skip
    out.print(table(("operation", "change", "model", "state", "begun", "by", "waits for, or why not"), rows))


def state(operation: dict[str, Any]) -> str:
    """How far it is, in a word or two."""
    if not operation["settled"]:
        return str(operation["phase"])
    return "rolled back" if operation["phase"] == "aborted" else "done"


def outcome(operation: dict[str, Any]) -> str:
    """One operation in a line."""
    by = f" by {operation['user']}" if operation["user"] else ""
    reason = f": {operation['reason']}" if operation["reason"] else ""
    what = f"{operation['kind']} {operation['model']}"
    return f"{what}, begun {age(operation['started'])}{by}, {state(operation)}{reason} ({operation['id']})"


def age(moment: float) -> str:
    """How long ago a moment was; `-` when it is not known."""
    if not moment:
        return "-"
    passed = max(0.0, time.time() - moment)
    for unit, length in (("s", 1), ("min", 60), ("h", 3600)):
        if passed < 100 * length:
            return f"{passed / length:.0f} {unit} ago"
    return f"{passed / 86_400:.0f} d ago"
