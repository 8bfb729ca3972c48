"""`penstock move`: the primary of an executor goes to another node while everything runs."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.connection import DEFAULT_URL, Token, Url, call
from penstock.cli.output import Json, console, error_console, print_json

PATIENCE = 100.0
"""Seconds to wait for the answer; the cluster gives a move up after 60."""


def move(
    model: Annotated[str, typer.Argument(help="A model with recovery passive or active.", show_default=False)],
    executor: Annotated[str, typer.Argument(help="STAGE.INDEX, as penstock model show has it.", show_default=False)],
    to: Annotated[str, typer.Option("--to", metavar="NODE", help="The node that it is to run on.")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is there.")] = True,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Move the primary of an executor to another node, with its state, while the model runs.

    A standby is made there, catches up, and takes over; Ctrl-C does not cancel it.
    """
    order = call(url, token, lambda client: client.move(model, executor, to, wait=wait), deadline=PATIENCE)
    if json:
        print_json(order)
    elif order["done"]:
        console().print(f"executor {executor} of {order['model']} runs on {order['target']}", markup=False)
    elif order["reason"]:
        error_console().print(f"executor {executor} stays on {order['source']}: {order['reason']}", markup=False)
    else:
        console().print("the move has begun; penstock events --follow shows it")
    if order["reason"]:
        raise typer.Exit(1)
