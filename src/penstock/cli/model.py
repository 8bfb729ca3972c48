"""`penstock model`: the catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.connection import DEFAULT_URL, Token, Url, call
from penstock.cli.output import (
    Json,
    console,
    error_console,
    print_json,
    print_lines,
    seconds,
    shown,
    table,
    value_text,
)
from penstock.cli.values import Set, assignments
from penstock.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from penstock.client import Client

app = typer.Typer(help="Add, remove, start and stop models.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="NAME or GROUP/NAME.", show_default=False)]

COLUMNS = ("model", "status", "#executors", "#in/s", "#out/s", "#p50", "#p99", "#restarts", "#lost", "#keys lost")
SPARE = ("#out/s", "#p50")
"""Left out on a narrow terminal."""
COLOURS = {"online": "green", "finished": "green", "failed": "bold red", "degraded": "yellow", "starting": "yellow"}
RESTART_ENTRIES = 200
"""So many of the last log entries are looked through for the reason of a restart."""
STARTING = 120.0
"""Seconds for an operation that starts or stops workers on every node."""


@app.command()
def add(
    target: Annotated[
        str,
        typer.Argument(metavar="PATH[:OBJECT]", help="A file or directory present on every node.", show_default=False),
    ],
    name: Annotated[str | None, typer.Option("--name", help="Instead of the flow's own name.")] = None,
    online: Annotated[bool, typer.Option("--online", help="Bring it online at once.")] = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Add a flow to the cluster."""
    path = resolve(target)
    view = call(url, token, lambda client: client.add_model(path, name=name), deadline=STARTING)
    if online:
        view = call(url, token, lambda client: client.online(view["name"]), deadline=STARTING)
    _done(view, f"{view['name']} is {'online' if online else 'added'}", json)


def resolve(target: str) -> str:
    """The target as every node must find it: absolute. Raises `UsageError` when it is nowhere here."""
    path, colon, attribute = target.partition(":")
    found = Path(path).expanduser()
    if not found.exists():
        if found.is_absolute():  # it may be there on the nodes
            return target
        raise UsageError(f"no such file or directory: {path}")
    return f"{found.resolve()}{colon}{attribute}"


@app.command()
def online(
    name: Name,
    executors: Annotated[int | None, typer.Option("--executors", "-e", min=1, help="Executors per stage.")] = None,
    settings: Set = None,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Bring a model online; returns when it runs. Keyed state starts empty."""
    config = assignments(settings)
    view = call(url, token, lambda c: c.online(name, config=config, executors=executors), deadline=STARTING)
    _done(view, f"{view['name']} is {view['status']}", json)


@app.command()
def offline(name: Name, url: Url = DEFAULT_URL, token: Token = None, json: Json = False) -> None:
    """Take a model offline; returns when it has stopped."""
    view = call(url, token, lambda client: client.offline(name), deadline=STARTING)
    _done(view, f"{view['name']} is {view['status']}", json)


@app.command()
def delete(name: Name, url: Url = DEFAULT_URL, token: Token = None, json: Json = False) -> None:
    """Delete a model that is offline."""
    call(url, token, lambda client: client.delete_model(name))
    _done({"name": name, "deleted": True}, f"{name} is deleted", json)


@app.command("list")
def list_(url: Url = DEFAULT_URL, token: Token = None, json: Json = False) -> None:
    """List the models with status and rates."""
    models = call(url, token, lambda client: client.models())
    if json:
        print_json(models)
        return
    out = console()
    out.print(models_table(models, out.width) if models else "no models; add one with `penstock model add`")


@app.command()
def show(name: Name, url: Url = DEFAULT_URL, token: Token = None, json: Json = False) -> None:
    """Show one model with its executors."""
    view, restart = call(url, token, lambda client: _with_restart(client, name))
    if json:
        print_json(view)
        return
    out = console()
    out.print(models_table([view], out.width))
    out.print(f"path: {view['path']}", markup=False)
    if view["config"]:
        out.print(f"config: {value_text(view['config'])}", markup=False)
    if view["error"]:
        out.print(view["error"], style="red", markup=False)
    elif restart:
        out.print(f"the last restart: {restart}", style="yellow", markup=False)
    if view["counters"]:
        out.print(table(("event", "#count"), view["counters"].items()))
    if view["executors"]:
        rows = map(executor_row, view["executors"])
        out.print(table(*shown(EXECUTOR_COLUMNS, rows, out.width, EXECUTOR_SPARE[:1]), one_line=True))


def _with_restart(client: Client, name: str) -> tuple[dict[str, Any], str]:
    """The model, and why its executors were last started again (as long as the log tells)."""
    view = client.model(name)
    if not view["restarts"] or view["error"]:
        return view, ""
    told = [entry["text"] for entry in client.log(name, limit=RESTART_ENTRIES) if entry["kind"] == "executor.restarted"]
    return view, told[-1] if told else ""


@app.command()
def results(
    name: Name,
    step: Annotated[str | None, typer.Option("--step", help="Of this `collect` sink alone.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000)] = 100,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Show the latest records that reached the model's `collect` sinks.

    With --json one record per line.
    """
    records = call(url, token, lambda client: client.results(name, step, limit=limit))
    if json:
        print_lines(records)
        return
    out = console()
    for record in records:
        out.print(value_text(record), markup=False)


def models_table(views: list[dict[str, Any]], width: int, title: str | None = None) -> Table:
    """Models as a table for a terminal of `width`."""
    return table(*shown(COLUMNS, map(row, views), width, SPARE), title=title, one_line=True)


def row(view: dict[str, Any]) -> tuple[Any, ...]:
    """One model as a table row."""
    from rich.text import Text

    p50, _, p99 = view["latency"] or (None, None, None)
    return (
        view["name"], Text(view["status"], COLOURS.get(view["status"], "")), len(view["executors"]),
        f"{view['rate_in']:,.0f}", f"{view['rate_out']:,.0f}", seconds(p50), seconds(p99),
        view["restarts"], view["lost"], view["keys_lost"],
    )  # fmt: skip


EXECUTOR_COLUMNS = (
    "executor",
    "node",
    "steps",
    "state",
    "#in/s",
    "#out/s",
    "#cpu",
    "#busy",
    "#queue",
    "#keys",
    "#restarts",
)
EXECUTOR_SPARE = ("#queue", "steps")
"""Left out on a narrow terminal."""


def executor_row(view: dict[str, Any]) -> tuple[Any, ...]:
    """One executor as a table row."""
    return (
        view["id"], view["node"], " ".join(view["steps"]), view["state"], f"{view['rate_in']:,.0f}",
        f"{view['rate_out']:,.0f}", f"{view['cpu']:.2f}", f"{view['busy']:.0%}", view["queue"], view["keys"],
        view["restarts"],
    )  # fmt: skip


def _done(value: Any, text: str, json: bool) -> None:
    if json:
        print_json(value)
    else:
        error_console().print(text, markup=False)
