"""`penstock up`: a cluster on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.balance_options import Balance, Rebalance, arguments, balancing
from penstock.cli.interrupts import interrupts, unless
from penstock.cli.output import Json, console, error_console, print_lines, table
from penstock.errors import ClusterError

if TYPE_CHECKING:
    from rich.status import Status

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
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="For packages and journals; without, they go away with the cluster."
        ),
    ] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            "--checkpoints",
            envvar="PENSTOCK_CHECKPOINTS",
            metavar="URL",
            help="Where durable checkpoints live: a directory or an fsspec URL; default: with the nodes' data.",
        ),
    ] = None,
    rebalance: Rebalance = True,
    balance: Balance = None,
    json: Json = False,
) -> None:
    """Start a cluster on this machine and keep it until Ctrl-C.

    With --json one line of JSON tells when it is ready.
    """
    from penstock.cli.local_cluster import LocalCluster

    balancing(balance)
    with error_console().status("starting") as status:
        local = LocalCluster(
            nodes, port, redis=redis, cluster=cluster, data=data, checkpoints=checkpoints,
            options=arguments(rebalance, balance), on_progress=status.update,
        )  # fmt: skip
        asyncio.run(_up(local, status, json))


async def _up(local: LocalCluster, status: Status, json: bool) -> None:
    stop = asyncio.Event()
    with interrupts(stop):
        try:
            if await unless(stop, local.start()):
                status.stop()
                _tell(local, json)
                await _follow(local, stop)
                status.start()
        finally:
            status.update("stopping")
            await local.stop()


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
    """Wait for `stop`; tell about every node that ends before. Raises `ClusterError` when none is left."""
    from penstock.cli.local_cluster import one_ends

    running = list(local.nodes)
    while running:
        if not await unless(stop, one_ends(running)):
            return
        node = next(node for node in running if node.status is not None)
        running.remove(node)
        notes = error_console()
        words = node.last_words()
        said = "; the end of its log:" if words else ""
        notes.print(f"{node.name} ended with status {node.status}{said}", style="yellow")
        for line in words.splitlines():
            notes.print(f"  | {line}", style="dim", markup=False)
    raise ClusterError("no node is left")
