"""`penstock rebalance`: where executors had better be, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.connection import DEFAULT_URL, Token, Url, call
from penstock.cli.output import Json, console, error_console, print_json, seconds, size, table

if TYPE_CHECKING:
    from rich.console import Console


def rebalance(
    model: Annotated[
        str | None, typer.Argument(help="Only its executors may move; default: all.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; show what would be better.")] = False,
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy", metavar="NAME", help="adaptive, balance, even, offline, traffic; default: adaptive."
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Move executors to where the measured traffic and load want them, and say why.

    Nothing moves unless it is worth it. `penstock events --follow` shows the moves.
    """
    view = call(url, token, lambda client: client.rebalance(dry_run=dry_run, strategy=strategy, model=model))
    if json:
        print_json(view)
        return
    out = console()
    out.print(view["reason"], markup=False)
    if view["moves"]:
        out.print(comparison(view))
        out.print(moves_table(view["moves"]))
    remarks(out, view)
    if view["moves"] and not dry_run:
        error_console().print("the moves have begun; penstock events --follow shows them")


def comparison(view: dict[str, Any]) -> Any:
    """The running placement beside the better one."""
    before, after = view["before"], view["after"]
    rows: list[tuple[str, str, str]] = [
        ("traffic between nodes", f"{before['cut']:.0%}", f"{after['cut']:.0%}"),
        ("bytes between nodes", f"{size(before['bytes'])}/s", f"{size(after['bytes'])}/s"),
        ("records between nodes", f"{before['records']:,.0f}/s", f"{after['records']:,.0f}/s"),
        ("latency, about", seconds(before["latency"]), seconds(after["latency"])),
    ]
    for node in sorted(before["load"].keys() | after["load"].keys()):
        now, then = before["load"].get(node, 0.0), after["load"].get(node, 0.0)
        rows.append((f"load of {node}", f"{now:.2f} cores", f"{then:.2f} cores"))
    return table(("", "#now", "#then"), rows)


def moves_table(moves: list[dict[str, Any]]) -> Any:
    """Every move, with what keeps it from being carried out."""
    columns: tuple[str, ...] = ("model", "executor", "from", "to", "#state")
    rows: list[tuple[Any, ...]] = [
        (move["model"], move["executor"], move["source"], move["target"], size(move["state"])) for move in moves
    ]
    if any(move["obstacle"] for move in moves):
        columns = (*columns, "only in a dry run, because")
        rows = [(*row, move["obstacle"]) for row, move in zip(rows, moves, strict=True)]
    return table(columns, rows)


def remarks(out: Console, view: dict[str, Any]) -> None:
    """What was refused and why, limits, and executors that could not move."""
    notes = [f"{m['model']} stays: {m['reason']}" for m in view["models"] if m["moves"] and not m["apply"]]
    notes += [f"group {group} stays: {text}" for group, text in view["faults"].items()]
    notes += view["blocked"]
    notes += [f"broken now: {limit}" for limit in view["before"]["broken"]]
    if not view["dry_run"]:
        notes += [f"{count} executors could not be moved: {why}" for why, count in view["staying"].items()]
    for note in notes:
        out.print(note, markup=False)
