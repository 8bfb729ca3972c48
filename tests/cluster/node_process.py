"""A node as a process of its own: agent and gateway. It says `ready`, and ends when its standard input does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys

import uvicorn
from tests.cluster.nodes import settings

from penstock.cluster.agent import NodeAgent
from penstock.gateway.app import create_app
from penstock.gateway.settings import GatewaySettings
from penstock.settings import RunSettings


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield


async def main(redis: str, name: str, prefix: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    agent = NodeAgent(
        redis,
        name=name,
        address=f"http://127.0.0.1:{port}",
        settings=settings(prefix),
        run_settings=RunSettings(metrics_interval=0.2),
    )
    app = create_app(agent, GatewaySettings(port=port))
    server = Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, lambda: os.read(0, 100) or ended.set())
    await agent.start()
    while await agent.ready():
        await asyncio.sleep(0.01)
    print(f"ready {port}", flush=True)
    await ended.wait()
    await agent.stop()
    server.should_exit = True
    await serving
    listener.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
