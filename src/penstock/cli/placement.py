"""`penstock placement`: which executor runs where."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from penstock.cli.connection import DEFAULT_URL, Token, Url, call
from penstock.cli.output import Json, console, print_json, size, table

Model = Annotated[str | None, typer.Argument(help="A model; all of them when it is left out.", show_default=False)]


def placement(model: Model = None, url: Url = DEFAULT_URL, token: Token = None, json: Json = False) -> None:
    """Show which executor runs on which node, and the traffic between them."""
    views = call(url, token, lambda client: client.placement(model))
    if json:
        print_json(views)
        return
    out = console()
    if not views:
        out.print("nothing is placed: no model is online")
    for view in views:
        show(out, view)


def show(out: Any, view: dict[str, Any]) -> None:
    """One model's placement for people."""
    load = ", ".join(f"{node} {count}" for node, count in view["load"].items())
    out.print(f"[bold]{view['model']}[/]  strategy {view['strategy']}, load: {load}, cut {view['cut']:.0%}")
    out.print(table(("executor", "node"), view["assignment"].items()))
    if view["channels"]:
        rows = [
            (f"{c['producer']} > {c['consumer']}", c["records"], f"{c['rate']:,.0f}/s", size(c["byte_rate"]) + "/s",
             size(c["queue_bytes"]), c["lost"], c["remote"])
            for c in view["channels"]
        ]  # fmt: skip
        out.print(table(("channel", "#records", "#rate", "#bytes", "#in flight", "#lost", "remote"), rows))
