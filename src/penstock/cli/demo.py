"""`penstock demo`: three nodes on this machine, seven live sensors, and what a small model makes of them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.output import Json, console, error_console, print_json

if TYPE_CHECKING:
    from pathlib import Path

    from penstock.cli.demo_session import Snapshot
    from penstock.cli.demo_view import View

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
    """Run it; `None` when it was stopped before the replay began."""
    from penstock.cli.demo_replay import load_series
    from penstock.cli.demo_session import Session

    stop = asyncio.Event()
    with view, _interrupts(stop):
        view.say("Starting three nodes and an embedded Valkey …")
        series = load_series(files / "data" / "nab")
        async with _cluster(port) as url:
            if stop.is_set():
                return None
            view.say("Bringing the model online …")
            return await Session(url, files / "anomaly.py", series, seconds).run(stop, view.show)


@contextlib.contextmanager
def _interrupts(stop: asyncio.Event):  # type: ignore[no-untyped-def]
    """Ctrl-C and SIGTERM end the demo in good order."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
