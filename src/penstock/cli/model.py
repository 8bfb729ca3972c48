"""`penstock model`: the models of the cluster, and what is known of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import model_changes
from penstock.cli.connection import DEFAULT_URL, Token, Url, call
from penstock.cli.events import print_log
from penstock.cli.model_changes import Name, ask
from penstock.cli.operations import age, outcome
from penstock.cli.output import (
    Json,
    console,
    error_console,
    print_json,
    print_lines,
    seconds,
    shown,
    size,
    table,
    value_text,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from penstock.client import Client

app = typer.Typer(help="Add, change, start and stop models.", no_args_is_help=True)
plan = typer.Typer(
    help="Say what a change would do, without doing it: the same as its --dry-run.", no_args_is_help=True
)

for change in model_changes.CHANGES:
    app.command()(change)
    plan.command()(change)
app.command()(model_changes.build)
app.add_typer(plan, name=model_changes.PLAN)

COLUMNS = (
    "model",
    "version",
    "status",
    "#executors",
    "#in/s",
    "#out/s",
    "#p50",
    "#p99",
    "#restarts",
    "#lost",
    "#keys lost",
)
SPARE = ("version", "#out/s", "#p50")
"""Left out on a narrow terminal."""
COLOURS = {"online": "green", "finished": "green", "failed": "bold red", "degraded": "yellow", "starting": "yellow"}
RESTART_ENTRIES = 200
"""So many of the last log entries are looked through for the reason of a restart."""
DIGITS = 12
"""Of a digest, which is enough to tell two packages apart."""


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
    """Show one model: version, configuration, executors, and what happened to it last."""
    view, restart, operation = ask(url, token, lambda client: _with_history(client, name))
    if json:
        print_json(view)
        return
    out = console()
    out.print(models_table([view], out.width))
    _show_package(out, view)
    _show_configuration(out, view)
    if operation is not None:
        out.print(f"last operation: {outcome(operation)}", markup=False)
    if view["error"]:
        out.print(view["error"], style="red", markup=False)
    elif restart:
        out.print(f"the last restart: {restart}", style="yellow", markup=False)
    if view.get("split"):
        out.print(view["split"], markup=False)
    if view.get("update"):
        _show_update(out, view)
    if view["checkpoint"]:
        _show_checkpoint(out, view["checkpoint"])
    if view["counters"]:
        out.print(table(("event", "#count"), view["counters"].items()))
    if view["executors"]:
        rows = map(executor_row, view["executors"])
        out.print(table(*shown(EXECUTOR_COLUMNS, rows, out.width, EXECUTOR_SPARE[:1]), one_line=True))
    if replicas := list(replica_rows(view)):
        out.print(table(*shown(REPLICA_COLUMNS, replicas, out.width, REPLICA_SPARE), title="Replicas", one_line=True))


def _show_package(out: Console, view: dict[str, Any]) -> None:
    parts = [f"generation {view['generation']}"]
    if view["version"]:
        parts.insert(0, f"version {view['version']}")
    if view["digest"]:
        parts.append(f"package {view['digest'][:DIGITS]}")
    if view["changed"]:
        parts.append(f"changed {age(view['changed'])}" + (f" by {view['user']}" if view["user"] else ""))
    if view["recovery"] != "none":
        parts.append(f"recovery {view['recovery']}")
        parts += [f"{view[what]} {what}" for what in ("promotions", "restores") if view[what]]
    out.print(", ".join(parts), markup=False)
    if view["requires"]:
        out.print(f"requires: {', '.join(view['requires'])}", markup=False)


def _show_update(out: Console, view: dict[str, Any]) -> None:
    """The live update that is under way, or why the last one failed."""
    update = view["update"]
    if update["phase"] == "failed":
        out.print(f"the last live update failed: {update['error']}", style="yellow", markup=False)
        return
    done = f"{update['executors']} of {len(view['executors'])} executors run it"
    out.print(f"live update to version {update['version'] or '?'}: {update['phase']}, {done}", markup=False)


def _show_checkpoint(out: Console, checkpoint: dict[str, Any]) -> None:
    """The last complete durable checkpoint, and why there is no later one."""
    if checkpoint["number"]:
        told = f"checkpoint {checkpoint['number']}, {age(checkpoint['at'])}, {size(checkpoint['bytes'])}"
        took = f" in {seconds(checkpoint['seconds'])}" if checkpoint["seconds"] else ""
        out.print(f"{told}{took}", markup=False)
    else:
        out.print("no checkpoint yet")
    if checkpoint["error"]:
        failed = f"the last {checkpoint['in_a_row']} checkpoints" if checkpoint["in_a_row"] > 1 else "a checkpoint"
        out.print(f"{failed} failed: {checkpoint['error']}", style="yellow", markup=False)


def _show_configuration(out: Console, view: dict[str, Any]) -> None:
    """Every setting with its value; where it was not given, the default of its author."""
    schema: dict[str, dict[str, Any]] = view["schema"]
    rows = []
    for key in sorted({*schema, *view["config"]}):
        said = schema.get(key, {})
        given = key in view["config"]
        value = view["config"][key] if given else said.get("default")
        rows.append((key, value_text(value), "" if given else "default", said.get("description", "")))
    if rows:
        out.print(table(("setting", "value", "", "meaning"), rows))


def _with_history(client: Client, name: str) -> tuple[dict[str, Any], str, dict[str, Any] | None]:
    """The model, why its executors were last started again, and its latest operation (as long as the cluster tells)."""
    view = client.model(name)
    operation = next((found for found in client.operations() if found["model"] == view["name"]), None)
    if not view["restarts"] or view["error"]:
        return view, "", operation
    told = [entry["text"] for entry in client.log(name, limit=RESTART_ENTRIES) if entry["kind"] == "executor.restarted"]
    return view, told[-1] if told else "", operation


@app.command()
def versions(name: Name, url: Url = DEFAULT_URL, token: Token = None, json: Json = False) -> None:
    """List the versions of a model, the present one first; `penstock model rollback` brings one back."""
    found = ask(url, token, lambda client: client.versions(name))
    if json:
        print_json(found)
        return
    rows = (
        (str(v["generation"]), v["version"], v["digest"][:DIGITS], age(v["changed"]), v["user"],
         "present" if v["current"] else "", value_text(v["config"]) if v["config"] else "")
        for v in found
    )  # fmt: skip
    console().print(table(("#generation", "version", "package", "changed", "by", "", "config"), rows))


@app.command()
def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what it says, until Ctrl-C.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="So many of the last entries.")] = 50,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Show what a model's code printed and logged, and its errors.

    With --json one entry per line.
    """

    def tell(client: Client) -> None:
        last = None
        for entry in client.logs(name, limit=limit):
            print_log(entry, json)
            last = entry["id"]
        if last is None:
            error_console().print("nothing was printed or logged yet")
        if follow:
            for entry in client.follow_logs(name, after=last):
                print_log(entry, json)

    try:
        ask(url, token, tell)
    except KeyboardInterrupt:  # the way to end `--follow`
        raise typer.Exit(0) from None


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
    records = ask(url, token, lambda client: client.results(name, step, limit=limit))
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
        view["name"], view["version"], Text(view["status"], COLOURS.get(view["status"], "")), len(view["executors"]),
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
        view["id"], _where(view), " ".join(view["steps"]), _state(view), f"{view['rate_in']:,.0f}",
        f"{view['rate_out']:,.0f}", f"{view['cpu']:.2f}", f"{view['busy']:.0%}", view["queue"], view["keys"],
        view["restarts"],
    )  # fmt: skip


def _where(view: dict[str, Any]) -> str:
    return f"{view['node']} > {view['moving_to']}" if view["moving_to"] else str(view["node"])


def _state(view: dict[str, Any]) -> str:
    return "degraded" if view["degraded"] and view["state"] == "running" else str(view["state"])


REPLICA_COLUMNS = ("executor", "role", "node", "state", "protects", "#behind", "#kept", "#pause", "#pid")
REPLICA_SPARE = ("#pid", "#kept", "#pause")
"""Left out on a narrow terminal."""


def replica_rows(view: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """The replicas of a model's executors as table rows. A primary is never behind, and protects nobody."""
    for executor in view["executors"]:
        for replica in executor["replicas"]:
            primary = replica["role"] == "primary"
            protects = "" if primary else "yes" if replica["protects"] else "not yet"
            yield (
                executor["id"], replica["role"], replica["node"], replica["state"], protects,
                None if primary else replica["behind"], size(replica["kept_bytes"]),
                seconds(replica["pause"]) if primary and replica.get("pause") else None, replica["pid"] or None,
            )  # fmt: skip
