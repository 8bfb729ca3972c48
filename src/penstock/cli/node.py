"""`penstock node`: one node of a cluster, agent and gateway in one process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.output import error_console
from penstock.cli.up import Cluster, interrupts

if TYPE_CHECKING:
    import uvicorn

    from penstock.gateway.settings import GatewaySettings

STARTING = 30.0
"""Seconds until the gateway must answer."""
LEAVING = 3
"""Seconds that open requests get when the node stops."""


def node(
    redis: Annotated[
        str, typer.Option("--redis", envvar="PENSTOCK_REDIS", help="The cluster's Redis or Valkey.", show_default=False)
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Unique in the cluster; default: host name and port.")
    ] = None,
    bind: Annotated[str, typer.Option("--bind", metavar="ADDRESS", help="Where it listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8700,
    cluster: Cluster = "penstock",
    token: Annotated[str | None, typer.Option("--token", envvar="PENSTOCK_TOKEN", help="Callers must send it.")] = None,
    tls_cert: Annotated[str | None, typer.Option("--tls-cert", metavar="PEM", help="Certificate chain.")] = None,
    tls_key: Annotated[str | None, typer.Option("--tls-key", metavar="PEM", help="Its private key.")] = None,
    until_stdin_closes: Annotated[
        bool, typer.Option("--until-stdin-closes", help="Stop when standard input ends: with the parent.")
    ] = False,
) -> None:
    """Join a cluster from this machine and stay until Ctrl-C."""
    from penstock.gateway.settings import GatewaySettings

    settings = GatewaySettings(host=bind, port=port, token=token, tls_certificate=tls_cert, tls_key=tls_key)
    settings.check()
    _check_readable(settings)
    from penstock.cli.local_cluster import bind as listen

    listener = listen(bind, port)  # first of all: nothing is started when the port is in use
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        asyncio.run(
            _serve(redis, name or f"{socket.gethostname()}-{port}", cluster, settings, listener, until_stdin_closes)
        )
    finally:
        listener.close()


def _check_readable(settings: GatewaySettings) -> None:
    """Raises `UsageError` for a PEM file that cannot be read."""
    from penstock.errors import UsageError

    for file in (settings.tls_certificate, settings.tls_key):
        if file is not None and not os.access(file, os.R_OK):
            raise UsageError(f"the TLS file {file} cannot be read")


async def _serve(
    redis: str, name: str, cluster: str, settings: GatewaySettings, listener: socket.socket, lifeline: bool
) -> None:
    from penstock.gateway.app import create_app

    agent = _agent(redis, name, cluster, settings)
    stop = asyncio.Event()
    with interrupts(stop):
        # The gateway answers before the agent has joined, so that probes and other nodes can see why it is not ready.
        async with _gateway(create_app(agent, settings), settings, listener) as server:
            watching = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(server)]
            if lifeline:
                watching.append(asyncio.ensure_future(_parent_gone()))
            try:
                await agent.start()
                error_console().print(f"{name} serves {settings.url}, cluster {cluster!r}", markup=False)
                await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for waiter in watching:
                    if waiter is not server:
                        waiter.cancel()
                await agent.stop()


def _agent(redis: str, name: str, cluster: str, settings: GatewaySettings) -> Any:
    from penstock.cluster.agent import NodeAgent
    from penstock.settings import ClusterSettings

    return NodeAgent(redis, name=name, address=settings.url, settings=ClusterSettings(prefix=cluster))


@contextlib.asynccontextmanager
async def _gateway(app: Any, settings: GatewaySettings, listener: socket.socket) -> AsyncIterator[asyncio.Task[None]]:
    """The HTTP server as a task, serving inside the block."""
    server = _server(app, settings)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(STARTING):
            while not server.started and not task.done():
                await asyncio.sleep(0.01)
        yield task
    finally:
        server.should_exit = True
        await task


def _server(app: Any, settings: GatewaySettings) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        """Leaves signals to us: the agent has to leave the cluster before the server goes."""

        @contextlib.contextmanager
        def capture_signals(self) -> Any:
            yield

    return Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
            timeout_graceful_shutdown=LEAVING,
            server_header=False,
        )
    )


async def _parent_gone() -> None:
    """Returns when standard input ends: whoever held its other end is gone."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            ended.set()

    loop.add_reader(0, readable)
    await ended.wait()
