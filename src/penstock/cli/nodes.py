"""`penstock nodes`: the members of the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.cli.connection import DEFAULT_URL, Token, Url, call
from penstock.cli.output import Json, console, print_json, shown, size, table

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    "node", "address", "state", "role", "#cpus", "#executors", "#workers", "#cpu", "#memory", "#network", "#waiting",
    "version",
)  # fmt: skip
SPARE = ("role", "#network", "#waiting", "version")
"""Left out on a narrow terminal."""


def nodes(url: Url = DEFAULT_URL, token: Token = None, json: Json = False) -> None:
    """List the members of the cluster."""
    members = call(url, token, lambda client: client.nodes())
    if json:
        print_json(members)
    else:
        out = console()
        out.print(members_table(members, out.width))


def members_table(members: list[dict[str, Any]], width: int, title: str | None = None) -> Table:
    """The members as a table for a terminal of `width`; with a column for bottlenecks when there are any."""
    columns: tuple[str, ...] = COLUMNS
    rows = [row(node) for node in members]
    if any(node["bottleneck"] for node in members):
        columns = (*COLUMNS, "bottleneck")
        rows = [(*cells, node["bottleneck"] or None) for cells, node in zip(rows, members, strict=True)]
    return table(*shown(columns, rows, width, SPARE), title=title, one_line=True)


def row(node: dict[str, Any]) -> tuple[Any, ...]:
    """One member as a table row."""
    state = "lost" if not node["live"] else "leader" if node["leader"] else "member"
    return (
        node["id"], node["address"], state, node["role"], node["cpus"], node["executors"], node["workers"],
        f"{node['cpu']:.2f}", size(node["rss"]), size(node["network"]) + "/s", size(node["buffer"]),
        node["version"],
    )  # fmt: skip
