"""`penstock up`: a cluster on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.output import Json, console, error_console, print_lines, table

if TYPE_CHECKING:
    from penstock.cli.local_cluster import LocalCluster

Cluster = Annotated[
    str,
    typer.Option("--cluster", envvar="PENSTOCK_CLUSTER", help="The cluster's name: clusters can share one Redis."),
]


def up(
    nodes: Annotated[int, typer.Option("--nodes", "-n", min=1, max=64, help="How many nodes.")] = 3,
    redis: Annotated[
        str | None,
        typer.Option("--redis", envvar="PENSTOCK_REDIS", help="A Redis or Valkey; without it one is started."),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Of the first node; the next ones follow.")
    ] = 8700,
    cluster: Cluster = "penstock",
    json: Json = False,
) -> None:
    """Start a cluster on this machine and keep it until Ctrl-C.

    With --json one line of JSON tells when it is ready.
    """
    asyncio.run(_up(nodes, redis, port, cluster, json))


async def _up(nodes: int, redis: str | None, port: int, cluster: str, json: bool) -> None:
    from penstock.cli.local_cluster import LocalCluster

    notes = error_console()
    stop = asyncio.Event()
    with interrupts(stop), notes.status("starting") as status:
        local = LocalCluster(nodes, port, redis=redis, cluster=cluster, on_progress=status.update)
        starting = asyncio.create_task(local.__aenter__())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            if not starting.cancelled():
                status.stop()
                _tell(local, json)
                await _follow(local, stop)
                status.start()
                status.update("stopping")
        finally:
            stopping.cancel()
            await local.stop()


@contextlib.contextmanager
def interrupts(stop: asyncio.Event) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal set `stop` instead of raising somewhere in the middle."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _tell(local: LocalCluster, json: bool) -> None:
    if json:
        described = [{"name": node.name, "url": node.url, "pid": node.pid} for node in local.nodes]
        print_lines([{"nodes": described, "redis": "embedded" if local.valkey else "external"}])
        return
    out = console()
    rows = [(node.name, node.url, str(node.pid)) for node in local.nodes]
    out.print(table(("node", "address", "#process"), rows))
    out.print(f"API documentation: {local.nodes[0].url}/docs")
    if local.nodes[0].port != 8700:
        out.print(f"Other commands find it with: export PENSTOCK_URL={local.nodes[0].url}")
    out.print("Ctrl-C stops the cluster.")


async def _follow(local: LocalCluster, stop: asyncio.Event) -> None:
    """Wait for `stop`; tell about every node that ends before."""
    notes = error_console()
    stopping = asyncio.create_task(stop.wait())
    try:
        while not stop.is_set():
            ending = asyncio.create_task(local.first_to_end())
            await asyncio.wait({ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                ending.cancel()
                await asyncio.gather(ending, return_exceptions=True)
                return
            node = ending.result()
            notes.print(f"{node.name} ended with status {node.status}", style="yellow")
            words = node.last_words()
            if words:
                notes.print(words, markup=False)
            if all(other.status is not None for other in local.nodes):
                from penstock.errors import ClusterError

                raise ClusterError("no node is left")
    finally:
        stopping.cancel()
