"""A node as a process of its own: agent and gateway. It says `ready PORT`, and ends when its standard input does.

`python -m tests.cluster.node_process REDIS NAME PREFIX [DATA [deaf] [cold] [checkpoints=URL] [lease=SECONDS]]`. A
`deaf` node never hears the bell, a `cold` one keeps no warm workers.

A line on its input is an order for one moment in its life, obeyed once:

    kill before Finish          SIGKILL itself when it is about to finish a transaction
    stop after SendVote         SIGSTOP itself when it has voted
    hold before Apply           wait there until `release`
    note after Prepare          only say so

The moments are the instructions of `transaction.instructions` by name, and Prepared and Decided (a journal with such a
transaction is written), Begin, Upload (the first piece of a package has come), Reply (the answer of a change is about
to be told). It says `reached WHEN MOMENT` first. `report` tells what the node holds, as JSON;
SIGUSR1 where all its tasks are.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn
from tests.cluster.nodes import settings

from penstock.cluster.agent import NodeAgent
from penstock.cluster.bus import Bus
from penstock.cluster.participation import Participation
from penstock.cluster.store import CatalogueStore
from penstock.cluster.transaction import instructions as do
from penstock.gateway.app import create_app
from penstock.gateway.settings import GatewaySettings
from penstock.settings import RunSettings

UPLOAD_KEPT = 0.5


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield


def say(*words):
    """One line, whole, also when a kill comes next."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Orders:
    """What to do at which moment."""

    def __init__(self):
        self.orders: dict[tuple[str, str], str] = {}
        self.released = asyncio.Event()

    def take(self, line):
        """An order as it came."""
        if line == "release":
            self.released.set()
            self.released = asyncio.Event()
            self.orders.clear()
        else:
            action, when, moment = line.split()
            self.orders[when, moment] = action
            say("armed", line)

    async def at(self, when, moment):
        """Obey, if there is an order for this moment."""
        action = self.orders.pop((when, moment), None)
        if action is None:
            return
        released = self.released
        say("reached", when, moment)
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif action == "hold":
            await released.wait()


def moment(instruction):
    """The name of the moment at which an instruction is carried out."""
    if isinstance(instruction, do.Write):
        journal = instruction.journal
        return "Decided" if journal.decided else "Prepared" if journal.prepared else "Write"
    return type(instruction).__name__


def watch(orders):
    """Make the moments known. There is one agent in this process, so its classes are changed."""

    def around(owner, name, what):
        original = getattr(owner, name)

        async def instead(self, *arguments, **named):
            called = what(*arguments) if callable(what) else what
            await orders.at("before", called)
            result = await original(self, *arguments, **named)
            await orders.at("after", called)
            return result

        setattr(owner, name, instead)

    around(Participation, "_effect", moment)
    around(CatalogueStore, "begin", "Begin")
    around(NodeAgent, "_answered", "Reply")
    receive = NodeAgent.receive

    async def received(self, chunks):
        async def pieces():
            async for chunk in chunks:
                yield chunk
                await orders.at("during", "Upload")

        return await receive(self, pieces())

    NodeAgent.receive = received


def report(agent):
    """What the node holds at this moment."""
    workers = agent._runner.workers
    server = agent._verifier._server
    return {
        "reserved": [worker.tag for worker in workers._workers.values() if worker.tag],
        "workers": workers.pids(),
        "warm": workers.warm(),
        "in_use": len(workers.groups()),
        "forkserver": None if server is None or not server.alive else server.process.pid,
        "trusted": agent._participation.trusted,
        "problem": agent._participation.problem,
    }


class Input:
    """The lines on standard input; `ended` is set at its end."""

    def __init__(self, agent, orders):
        self._agent, self._orders, self._rest = agent, orders, b""
        self.ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(0, self._read)

    def _read(self):
        data = os.read(0, 65536)
        if not data:
            self.ended.set()
            asyncio.get_running_loop().remove_reader(0)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in map(bytes.decode, lines):
            if line == "report":
                say("report", json.dumps(report(self._agent)))
            elif line:
                self._orders.take(line)


def tell_all():
    """Where every task and thread is, on standard error."""
    faulthandler.dump_traceback(all_threads=True)
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stderr)
    sys.stderr.flush()


async def deaf(self):
    await asyncio.Event().wait()


async def main(redis: str, name: str, prefix: str, data: str = "", *more: str) -> None:
    if "deaf" in more:
        Bus._listen = deaf
    options = dict(word.split("=", 1) for word in more if "=" in word)
    lease = float(options.get("lease", 1.5))
    listener = socket.socket(proto=socket.IPPROTO_TCP)  # for asyncio to see that it is TCP, and to switch Nagle off
    listener.bind(("127.0.0.1", 0))
    listener.listen(100)
    port = listener.getsockname()[1]
    agent = NodeAgent(
        redis,
        name=name,
        address=f"http://127.0.0.1:{port}",
        settings=settings(
            prefix,
            upload_kept=UPLOAD_KEPT,
            warm_workers=0 if "cold" in more else 1,
            lease=lease,
            leader_lease=lease,
            checkpoints=options.get("checkpoints"),
        ),
        run_settings=RunSettings(metrics_interval=0.2),
        data_dir=Path(data) if data else None,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tell_all)
    orders = Orders()
    watch(orders)
    app = create_app(agent, GatewaySettings(port=port))
    server = Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    lines = Input(agent, orders)
    await agent.start()
    while await agent.ready() and not lines.ended.is_set():
        await asyncio.sleep(0.01)
    say("ready", port)
    await lines.ended.wait()
    await agent.stop()
    server.should_exit = True
    await serving
    listener.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
