"""`penstock node`: one node of a cluster, agent and gateway in one process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import msgspec
import typer

from penstock.cli.balance_options import Balance, Rebalance, balancing
from penstock.cli.interrupts import interrupts, unless
from penstock.cli.output import error_console
from penstock.cli.up import Cluster
from penstock.errors import UsageError
from penstock.settings import Balancing

if TYPE_CHECKING:
    import uvicorn

    from penstock.cluster.agent import NodeAgent
    from penstock.gateway.settings import GatewaySettings

ROLES = ("compute", "fast")
WILDCARDS = ("0.0.0.0", "::")
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
    advertise: Annotated[
        str | None, typer.Option("--advertise", metavar="HOST", help="How other nodes reach it; default: --bind.")
    ] = None,
    role: Annotated[str, typer.Option("--role", help="`compute` or `fast`, for placement.")] = "compute",
    slots: Annotated[
        int | None, typer.Option("--slots", min=1, help="Executors to place here; default: the number of CPUs.")
    ] = None,
    cluster: Cluster = "penstock",
    token: Annotated[str | None, typer.Option("--token", envvar="PENSTOCK_TOKEN", help="Callers must send it.")] = None,
    tls_cert: Annotated[str | None, typer.Option("--tls-cert", metavar="PEM", help="Certificate chain.")] = None,
    tls_key: Annotated[str | None, typer.Option("--tls-key", metavar="PEM", help="Its private key.")] = None,
    until_stdin_closes: Annotated[
        bool, typer.Option("--until-stdin-closes", help="Stop when standard input ends: with the parent.")
    ] = False,
    home: Annotated[
        str | None, typer.Option("--home", metavar="DIR", help="For temporary files; removed at the end if empty.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DIR", help="For packages and the journal; default: in the user's data folder."),
    ] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            "--checkpoints",
            envvar="PENSTOCK_CHECKPOINTS",
            metavar="URL",
            help="Where durable checkpoints live: any fsspec URL that all nodes share, the same for all.",
        ),
    ] = None,
    rebalance: Rebalance = True,
    balance: Balance = None,
    found_after: Annotated[
        float | None,
        typer.Option(
            "--found-after", min=0, metavar="SECONDS", hidden=True, help="When an empty Redis is a new cluster."
        ),
    ] = None,
) -> None:
    """Join a cluster from this machine and stay until Ctrl-C."""
    from penstock.gateway.settings import GatewaySettings

    gateway = GatewaySettings(host=bind, port=port, token=token, tls_certificate=tls_cert, tls_key=tls_key)
    gateway.check()
    _check_readable(gateway)
    if role not in ROLES:
        raise UsageError(f"there is no role {role!r}", remedy=f"choose {' or '.join(ROLES)}")
    from penstock.cli.local_cluster import bind as listen
    from penstock.cli.local_cluster import store_url

    named = name or f"{socket.gethostname()}-{port}"
    # A node with a `--home` is one of a cluster that lives for a while, and so does what it keeps.
    kept = Path(data) if data is not None else None if home is not None else data_folder(cluster, named)
    identity = Identity(named, address(gateway, advertise), role, slots, kept, found_after)
    if checkpoints is not None:
        identity = replace(identity, checkpoints=store_url(checkpoints))
    identity = replace(identity, rebalance=rebalance, balancing=balancing(balance))
    listener = listen(bind, port)  # first of all: nothing is started when the port is in use
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        with _temporary_files_in(home):
            asyncio.run(_serve(redis, cluster, identity, gateway, listener, until_stdin_closes))
    finally:
        listener.close()


@contextlib.contextmanager
def _temporary_files_in(home: str | None) -> Iterator[None]:
    """Inside, temporary files of this process and its workers are made in `home`.

    Whoever made `home` removes it with everything that a killed node left behind; when the maker was killed as well,
    the last node to end removes it.
    """
    if home is None:
        yield
        return
    os.environ["TMPDIR"] = tempfile.tempdir = home
    try:
        yield
    finally:
        from penstock.cli.local_cluster import CHECKPOINTS

        with contextlib.suppress(OSError):  # not empty: another node still uses it
            if os.listdir(home) == [CHECKPOINTS]:  # which only nodes that are gone have used
                shutil.rmtree(home)
            else:
                os.rmdir(home)


@dataclass(frozen=True)
class Identity:
    """What the cluster knows this node by."""

    name: str
    address: str
    role: str
    slots: int | None
    data: Path | None
    """Where it keeps packages and its journal; `None`: they go away with it."""
    found_after: float | None
    """Seconds after which an empty Redis is a new cluster; `None`: the default."""
    checkpoints: str | None = None
    """Where durable checkpoints live; `None`: there are none."""
    rebalance: bool = True
    """Whether executors are moved without being asked."""
    balancing: Balancing = field(default_factory=Balancing)
    """How executors are placed by what is measured."""


def data_folder(cluster: str, name: str) -> Path:
    """Where a node keeps packages and its journal unless it is told: in the user's data folder, as the system wants it
    (XDG Base Directory Specification, or Application Support)."""
    given = os.environ.get("XDG_DATA_HOME", "")
    if os.path.isabs(given):
        root = Path(given)
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Application Support"
    else:
        root = Path.home() / ".local" / "share"
    return root / "penstock" / _folder(cluster) / _folder(name)


def _folder(name: str) -> str:
    """A name that people choose, as the name of one folder."""
    return quote(name, safe="").replace(".", "%2E") if name.startswith(".") else quote(name, safe="")


def address(gateway: GatewaySettings, advertise: str | None) -> str:
    """Where other nodes reach the gateway. A wildcard address leads nowhere, so the host's name stands in for it."""
    host = advertise or (socket.getfqdn() if gateway.host in WILDCARDS else gateway.host)
    return msgspec.structs.replace(gateway, host=host).url


def _check_readable(settings: GatewaySettings) -> None:
    """Raises `UsageError` for a PEM file that cannot be read."""
    for file in (settings.tls_certificate, settings.tls_key):
        if file is not None and not os.access(file, os.R_OK):
            raise UsageError(f"the TLS file {file} cannot be read")


async def _serve(
    redis: str, cluster: str, identity: Identity, gateway: GatewaySettings, listener: socket.socket, lifeline: bool
) -> None:
    stop = asyncio.Event()
    with interrupts(stop), _lifeline(stop) if lifeline else contextlib.nullcontext():
        agent = _agent(redis, cluster, identity)
        from penstock.gateway.app import create_app

        # The gateway answers before the agent has joined, so that probes and other nodes can see why it is not ready.
        async with _gateway(create_app(agent, gateway), gateway, listener) as server:
            try:
                if await unless(stop, agent.start()):
                    error_console().print(
                        f"{identity.name} serves {identity.address}, cluster {cluster!r}", markup=False
                    )
                    await unless(stop, server())
            finally:
                await agent.stop()


def _agent(redis: str, cluster: str, identity: Identity) -> NodeAgent:
    from penstock.cluster.agent import NodeAgent
    from penstock.settings import ClusterSettings

    settings = ClusterSettings(
        prefix=cluster, checkpoints=identity.checkpoints, rebalance=identity.rebalance, balancing=identity.balancing
    )
    if identity.found_after is not None:
        settings = msgspec.structs.replace(settings, found_after=identity.found_after)
    return NodeAgent(
        redis,
        name=identity.name,
        address=identity.address,
        settings=settings,
        role=identity.role,
        slots=identity.slots,
        data_dir=identity.data,
    )


@contextlib.asynccontextmanager
async def _gateway(
    app: Any, settings: GatewaySettings, listener: socket.socket
) -> AsyncIterator[Callable[[], Coroutine[Any, Any, None]]]:
    """Serves inside the block; gives a function that waits until the server ends by itself."""
    server = _server(app, settings)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(STARTING):
            while not server.started and not task.done():
                await asyncio.sleep(0.01)

        async def ended() -> None:
            await asyncio.wait({task})

        yield ended
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


@contextlib.contextmanager
def _lifeline(stop: asyncio.Event) -> Iterator[None]:
    """Inside, the end of standard input sets `stop`: whoever held its other end is gone."""
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop.set()

    loop.add_reader(0, readable)
    try:
        yield
    finally:
        loop.remove_reader(0)
