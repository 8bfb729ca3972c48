"""Which node a command talks to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from penstock.client import Client

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8700"

Url = Annotated[str, typer.Option("--url", envvar="PENSTOCK_URL", help="A node of the cluster.", metavar="URL")]
Token = Annotated[
    str | None, typer.Option("--token", envvar="PENSTOCK_TOKEN", help="The cluster's token.", show_envvar=True)
]


def call(url: str, token: str | None, use: Callable[[Client], T], *, deadline: float = 30.0) -> T:
    """The result of `use(client)` for a client of the node at `url`, closed afterwards."""
    from penstock.client import Client

    with Client(url, token, deadline=deadline) as client:
        return use(client)
