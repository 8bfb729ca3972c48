"""`penstock nodes`: the members of the cluster."""

from __future__ import annotations

from typing import Any

from penstock.cli.connection import DEFAULT_URL, Token, Url, call
from penstock.cli.output import Json, console, print_json, size, table

COLUMNS = ("node", "address", "state", "role", "#cpus", "#executors", "#workers", "#cpu", "#memory", "version")


def nodes(url: Url = DEFAULT_URL, token: Token = None, json: Json = False) -> None:
    """List the members of the cluster."""
    members = call(url, token, lambda client: client.nodes())
    if json:
        print_json(members)
    else:
        console().print(table(COLUMNS, map(row, members)))


def row(node: dict[str, Any]) -> tuple[Any, ...]:
    """One member as a table row."""
    state = "lost" if not node["live"] else "leader" if node["leader"] else "member"
    return (
        node["id"], node["address"], state, node["role"], node["cpus"], node["executors"], node["workers"],
        f"{node['cpu']:.2f}", size(node["rss"]), node["version"],
    )  # fmt: skip
