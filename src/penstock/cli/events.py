"""`penstock events`: what happened in the cluster, and what happens now."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.connection import DEFAULT_URL, Token, Url, call
from penstock.cli.output import Json, console, print_lines

if TYPE_CHECKING:
    from penstock.client import Client

COLOURS = {"critical": "bold red", "error": "red", "warning": "yellow", "debug": "dim"}


def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens, until Ctrl-C.")] = False,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Of this model alone.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="So many of the last entries.")] = 50,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Show the log of the cluster: members, models, failures, restarts.

    With --json one entry per line.
    """

    def show(client: Client) -> None:
        last = None
        for entry in client.log(model, limit=limit):
            print_entry(entry, json)
            last = entry["id"]
        if follow:
            for entry in client.follow(model, after=last):
                print_entry(entry, json)

    try:
        call(url, token, show)
    except KeyboardInterrupt:  # the way to end `--follow`
        raise typer.Exit(0) from None


def print_entry(entry: dict[str, Any], json: bool) -> None:
    """One entry of a log as a line, or as JSON."""
    if json:
        print_lines([entry])
        return
    from datetime import datetime

    from rich.text import Text

    when = datetime.fromtimestamp(entry["time"]).strftime("%H:%M:%S")
    text = readable(entry["text"])
    where = " ".join(name for name in (entry["node"], entry["model"]) if name and not says(text, name))
    user = entry.get("user", "")
    by = f" (by {user})" if user and not says(text, user) else ""
    line = Text.assemble(
        (when, "dim"), " ", (f"{entry['kind']:<20}", COLOURS.get(entry["level"], "")), " ",
        (f"{where}: " if where else "", "bold"), text, (by, "dim"),
    )  # fmt: skip
    console().print(line)


def print_log(entry: dict[str, Any], json: bool) -> None:
    """One line of what a model printed or logged, or as JSON; the model is known."""
    if json:
        print_lines([entry])
        return
    from datetime import datetime

    from rich.text import Text

    when = datetime.fromtimestamp(entry["time"]).strftime("%H:%M:%S")
    line = Text.assemble(
        (when, "dim"), " ", (entry["node"], "bold"), " ", (f"{entry['level']:<7}", COLOURS.get(entry["level"], "")),
        " ", readable(entry["text"]),
    )  # fmt: skip
    console().print(line)


def says(text: str, name: str) -> bool:
    """Whether the text says the name already, and not as a part of another."""
    return re.search(rf"(?<![\w./-]){re.escape(name)}(?![\w/-])", text) is not None


def readable(text: str) -> str:
    """An entry without the trace that an author's error may bring along; `--json` and `PENSTOCK_DEBUG=1` have it."""
    if os.environ.get("PENSTOCK_DEBUG") == "1":
        return text
    return text.partition("\nTraceback (most recent call last)")[0]
