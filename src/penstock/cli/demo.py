"""`penstock demo`: three nodes on this machine, seven live sensors, and what a small model makes of them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.output import Json, console, error_console, print_json
from penstock.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from penstock.cli.demo_replay import Series
    from penstock.cli.demo_session import Snapshot
    from penstock.cli.demo_view import View
    from penstock.cli.local_cluster import LocalCluster

NODES = 3
FIRST_PORT = 8700


def demo(
    seconds: Annotated[
        float,
        typer.Option(
            envvar="PENSTOCK_DEMO_SECONDS", min=1, max=86_400, help="How long the replay takes.", metavar="SECONDS"
        ),
    ] = 50.0,
    port: Annotated[
        int | None,
        typer.Option(min=1024, max=65_000, help="The first node's port; default: 8700, or the next that are free."),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines also on a terminal.", show_default=False)] = False,
    json: Json = False,
) -> None:
    """Start three nodes on this machine, replay a year of seven real sensors through a keyed anomaly score, compare
    what it detects with what people labelled, and count every record. Ends by itself, or on Ctrl-C."""
    from penstock.cli.demo_replay import demo_files
    from penstock.cli.demo_session import unfinished
    from penstock.cli.demo_view import LiveView, PlainView, closing

    files = demo_files()
    out = error_console() if json else console()
    live = out.is_terminal and not plain and out.width >= 80
    snapshot = asyncio.run(_demo(files, seconds, port, LiveView(out) if live else PlainView(out)))
    if snapshot is None:
        out.print("Stopped before the replay began.")
        return
    if json:
        print_json(snapshot.summary())
    else:
        out.print(closing(snapshot))
    problem = unfinished(snapshot)
    if problem is not None:
        raise problem


async def _demo(files: Path, seconds: float, port: int | None, view: View) -> Snapshot | None:
    """Run it; `None` when it was stopped before the replay began. Leaves no process behind, however it ends."""
    from penstock.cli.demo_replay import load_series
    from penstock.cli.interrupts import interrupts
    from penstock.cli.local_cluster import LocalCluster

    stop = asyncio.Event()
    with view, interrupts(stop):
        series = load_series(files / "data" / "nab")
        cluster = LocalCluster(NODES, free_ports() if port is None else port, on_progress=view.say)
        running = asyncio.create_task(_run(cluster, files / "anomaly.py", series, seconds, stop, view))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done() and not view.shown:
                running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                return await running
            return None
        finally:
            stopping.cancel()


async def _run(
    cluster: LocalCluster, flow: Path, series: list[Series], seconds: float, stop: asyncio.Event, view: View
) -> Snapshot:
    from penstock.cli.demo_session import Session

    async with cluster:
        view.say("bringing the model online")
        return await Session(cluster.nodes[0].url, flow, series, seconds).run(stop, view.show)


def free_ports() -> int:
    """The first of `NODES` ports that nobody uses, from 8700 on. Raises `UsageError` when there are none."""
    from penstock.cli.local_cluster import check_ports

    for first in range(FIRST_PORT, FIRST_PORT + 100 * NODES, NODES):
        try:
            check_ports(list(range(first, first + NODES)))
        except UsageError:
            continue
        return first
    raise UsageError(f"no {NODES} free ports from {FIRST_PORT} on", remedy="name the first one with --port")
