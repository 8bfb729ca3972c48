"""`penstock split`: an executor of a keyed step shares its keys with a new one while everything runs."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.connection import DEFAULT_URL, Token, Url, call
from penstock.cli.output import Json, console, print_json


def split(
    model: Annotated[str, typer.Argument(help="A model with recovery passive or active.", show_default=False)],
    what: Annotated[
        str, typer.Argument(help="A keyed step, or STAGE.INDEX, as penstock model show has it.", show_default=False)
    ],
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Split an executor: half of its key groups, with their state, go to a new executor while the model runs.

    Of a step, the executor with the most key groups is split. If anything fails before the new one has all of the
    state, the old one goes on as before.
    """
    order = call(url, token, lambda client: client.split(model, what))
    if json:
        print_json(order)
        return
    text = f"{order['groups']} key groups of executor {order['executor']} of {order['model']} go to a new executor"
    console().print(f"{text}; penstock events --follow shows it", markup=False)
