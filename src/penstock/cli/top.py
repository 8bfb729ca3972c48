"""`penstock top`: the cluster at a glance, live."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import model as models
from penstock.cli import nodes
from penstock.cli.connection import DEFAULT_URL, Token, Url, call
from penstock.cli.output import Json, console, print_json, shown, table

if TYPE_CHECKING:
    from rich.console import Group

    from penstock.client import Client

PATIENCE = 2.0
"""Seconds to try before the picture says that the node does not answer."""


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one picture and end.")] = False,
    interval: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds between two pictures.")] = 1.0,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Show nodes, models and executors with rates, latency and CPU, until Ctrl-C."""
    if once or json:
        view = call(url, token, lambda client: client.metrics())
        if json:
            print_json(view)
        else:
            out = console()
            out.print(picture(view, out.width))
        return
    try:
        call(url, token, lambda client: _live(client, interval), deadline=PATIENCE)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _live(client: Client, interval: float) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from penstock.client import Unreachable

    last = client.metrics()
    out = console()
    if not out.is_terminal:  # one picture after the other
        while True:
            out.print(picture(last, out.width))
            sys.stdout.flush()
            time.sleep(interval)
            last = client.metrics()
    with Live(picture(last, out.width), console=out, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            try:
                last = client.metrics()
                live.update(picture(last, out.width), refresh=True)
            except Unreachable as error:  # the node may come back: keep the last picture and say so
                live.update(Group(picture(last, out.width), Text(error.message, "bold red")), refresh=True)


def picture(view: dict[str, Any], width: int) -> Group:
    """One picture of the cluster for a terminal of `width`."""
    from rich.console import Group

    parts: list[Any] = [nodes.members_table(view["nodes"], width, "Nodes")]
    if view["models"]:
        parts.append(models.models_table(view["models"], width, "Models"))
    executors = [
        (model["name"], *models.executor_row(executor)) for model in view["models"] for executor in model["executors"]
    ]
    if executors:
        columns = ("model", *models.EXECUTOR_COLUMNS)
        told = shown(columns, executors, width, models.EXECUTOR_SPARE)
        parts.append(table(*told, title="Executors", one_line=True))
    replicas = [(model["name"], *row) for model in view["models"] for row in models.replica_rows(model)]
    if replicas:
        told = shown(("model", *models.REPLICA_COLUMNS), replicas, width, models.REPLICA_SPARE)
        parts.append(table(*told, title="Replicas", one_line=True))
    return Group(*parts)
