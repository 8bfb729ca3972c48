"""`penstock placement`: which executor runs where, drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.connection import DEFAULT_URL, Token, Url, call
from penstock.cli.output import Json, console, print_json, seconds, size, table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree

    from penstock.client import Client

Model = Annotated[str | None, typer.Argument(help="A model; all of them when it is left out.", show_default=False)]
EDGES = 12
"""The heaviest edges are drawn, so many."""
BAR = 20
"""Columns of the longest bar."""


def placement(
    model: Model = None,
    channels: Annotated[bool, typer.Option("--channels", help="List every channel with what it carried.")] = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Draw nodes, workers and executors, and the edges with most traffic between them."""
    views, metrics = call(url, token, lambda client: _asked(client, model, json))
    if json:
        print_json(views)
        return
    out = console()
    if not views:
        out.print("nothing is placed: no model is online")
        return
    out.print(tree(views, metrics))
    draw_edges(out, views)
    for view in views:
        summary(out, view)
        if channels and view["channels"]:
            out.print(channel_table(view["channels"]))


def _asked(client: Client, model: str | None, json: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    views = client.placement(model)
    return views, {} if json or not views else client.metrics()


def bar(share: float, width: int = BAR) -> str:
    """A bar of up to `width` columns."""
    whole, eighths = divmod(round(8 * width * min(1.0, max(0.0, share))), 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[eighths].strip()


def tree(views: list[dict[str, Any]], metrics: dict[str, Any]) -> Tree:
    """Nodes, their workers, and the executors in each. Nodes without any are shown too: they have room."""
    from rich.text import Text
    from rich.tree import Tree

    details = {(m["name"], e["id"]): e for m in metrics.get("models", ()) for e in m["executors"]}
    drawn = Tree(Text("cluster", "bold"))
    known = {node["id"]: node for node in metrics.get("nodes", ())}
    used = {node for view in views for node in view["assignment"].values()}
    for name in sorted(known.keys() | used):
        branch = drawn.add(Text(*_node_line(name, known.get(name))))
        workers: dict[int, list[Text]] = {}
        for view in views:
            for executor, node in view["assignment"].items():
                if node == name:
                    found = details.get((view["model"], executor), {})
                    workers.setdefault(found.get("pid", 0), []).append(Text(executor_line(view, executor, found)))
        for pid, lines in sorted(workers.items()):
            worker = branch.add(Text(f"worker {pid}" if pid else "no worker at this moment", "cyan" if pid else "red"))
            for line in lines:
                worker.add(line)
        kept = [
            f"{view['model']} {executor}"
            for view in views
            for executor, nodes in view.get("standbys", {}).items()
            if name in nodes
        ]
        if kept:
            branch.add(Text(f"standbys of {', '.join(kept)}", "dim"))
    return drawn


def _node_line(name: str, node: dict[str, Any] | None) -> tuple[str, str]:
    if node is None:
        return f"{name}  (gone)", "red"
    role = "leader, " if node["leader"] else ""
    share = node["cpu"] / node["cpus"] if node["cpus"] else 0.0
    parts = [
        f"{role}cpu {node['cpu']:.2f} of {node['cpus']} cores {bar(share, 10)}".rstrip(),
        f"memory {size(node['rss'])}",
    ]
    if node.get("network"):
        parts.append(f"network {size(node['network'])}/s")
    if node.get("buffer"):
        parts.append(f"waiting {size(node['buffer'])}")
    if node.get("bottleneck"):
        return f"{name}  {', '.join(parts)}  BOTTLENECK {node['bottleneck']}", "bold red"
    return f"{name}  {', '.join(parts)}", "bold" if node["live"] else "red"


def executor_line(view: dict[str, Any], executor: str, found: dict[str, Any]) -> str:
    """One executor: what it does, how fast, and what it uses."""
    parts = [f"{view['model']} {executor}", " ".join(found.get("steps", ()))]
    if found.get("rate_in") or found.get("rate_out"):
        parts.append(f"{found['rate_in']:,.0f}/s in, {found['rate_out']:,.0f}/s out")
    if found.get("cpu"):
        parts.append(f"{found['cpu']:.2f} cores")
    if found.get("keys"):
        parts.append(f"{found['keys']:,} keys")
    if groups := view.get("key_groups", {}).get(executor):
        parts.append(f"{groups} key groups")
    if found.get("state", "running") != "running":
        parts.append(found["state"])
    return "  ".join(part for part in parts if part)


def draw_edges(out: Console, views: list[dict[str, Any]]) -> None:
    """The edges with most traffic, the heaviest first."""
    from rich.text import Text

    edges = [(view["model"], edge) for view in views for edge in view.get("heaviest", ())]
    edges.sort(key=lambda entry: -entry[1]["bytes"])
    edges = edges[:EDGES]
    if not edges:
        return
    most = max(edge["bytes"] for _, edge in edges) or 1.0
    several = len({model for model, _ in edges}) > 1
    rows = []
    for model, edge in edges:
        where = f"{edge['source']} > {edge['target']}" if edge["remote"] else f"within {edge['source']}"
        name = f"{edge['producer']} > {edge['consumer']}"
        drawn = Text(bar(edge["bytes"] / most), "yellow" if edge["remote"] else "green")
        row = (name, where, size(edge["bytes"]) + "/s", f"{edge['records']:,.0f}/s", drawn)
        rows.append((model, *row) if several else row)
    columns = ("edge", "nodes", "#bytes", "#records", "")
    out.print(table(("model", *columns) if several else columns, rows, one_line=True))


def summary(out: Console, view: dict[str, Any]) -> None:
    """One model in a line or two."""
    load = ", ".join(f"{node} {count}" for node, count in view["load"].items())
    out.print(
        f"[bold]{view['model']}[/]  first placed by {view['strategy']}, load: {load}, cut {view['cut']:.0%}", end=""
    )
    now = view.get("now")
    if now and (now["cut"] or now["latency"]):
        out.print(
            f" (now {now['cut']:.0%}, {size(now['bytes'])}/s between nodes, latency about {seconds(now['latency'])})",
            end="",
        )
    out.print()
    reasons: dict[str, list[str]] = {}
    if view.get("split"):
        out.print(f"  {view['split']}", markup=False)
    for executor, why in view.get("stays", {}).items():
        reasons.setdefault(why, []).append(executor)
    for why, executors in reasons.items():
        some = ", ".join(executors[:6]) + (f" and {len(executors) - 6} more" if len(executors) > 6 else "")
        out.print(f"  {some}: cannot be moved, {why}", style="dim", markup=False)


def channel_table(channels: list[dict[str, Any]]) -> Any:
    """Every channel with what it has carried since its producer started."""
    rows = [
        (f"{c['producer']} > {c['consumer']}", c["records"], f"{c['rate']:,.0f}/s", size(c["byte_rate"]) + "/s",
         size(c["queue_bytes"]), c["lost"], c["remote"])
        for c in channels
    ]  # fmt: skip
    return table(("channel", "#records", "#rate", "#bytes", "#in flight", "#lost", "remote"), rows)
