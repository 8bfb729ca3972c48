"""W6 on Penstock: operations on models over real node processes on this machine, and online to the first record.

    python -m bench.penstock_w6 operations NODES MODELS     every operation, for so many models one after the other
    python -m bench.penstock_w6 cycles CYCLES               online and offline again on one node: does anything grow?

The cluster is that of `penstock up --nodes N`: embedded Valkey, one process per node, all on the same cores. Requests
go over HTTP to the nodes in turn, on connections that are open already. The clock starts when a request is sent and
stops at its answer, or when the sink of the flow has its first record. Packages are made before. Every operation begins
when the cluster is at rest: each node has its warm worker and nothing is being started.

Appends one JSON line per figure to the file that `BENCH_OUT` names.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.measure import report
from bench.race import free_ports
from bench.w6_packages import package, tiny_wheel
from penstock.cli.local_cluster import LocalCluster
from penstock.cluster.bus import Bus
from penstock.model.package import Package
from penstock.settings import ClusterSettings

PATIENCE = 60.0
"""Seconds for one answer, for the first record, and for the cluster to come to rest."""
REST = 0.3
"""Seconds between two looks whether the cluster is at rest."""
WHEEL = {"content-type": "application/octet-stream"}
MODELS = "/v1/models"


class Bench:
    """A cluster, its clients, and a scratch directory."""

    def __init__(self, cluster: LocalCluster, clients: list[httpx.AsyncClient], scratch: Path) -> None:
        self.cluster, self.clients, self.scratch = cluster, clients, scratch
        self.arrived = scratch / "arrived"
        self.nodes = len(clients)
        self.counted = True
        """Whether figures are reported: not those of the first model, which opens connections and loads scripts."""
        self._turn = 0
        self._at_rest: list[int] = []
        """Processes below each node when there is nothing to do; empty: not known yet."""

    def packed(self, name: str, version: str = "1", dependency: Path | None = None) -> Package:
        """A model of this name that says when its first record arrives."""
        return package(self.scratch / "packages", name, self.arrived, version, dependency)

    async def ask(self, method: str, path: str, **arguments: Any) -> tuple[int, float]:
        """When the request was sent (monotonic ns), and milliseconds until its answer. Raises for a refusal."""
        self._turn += 1
        client = self.clients[self._turn % len(self.clients)]
        headers = {"idempotency-key": uuid.uuid4().hex, **arguments.pop("headers", {})}
        sent = time.monotonic_ns()
        answer = await client.request(method, path, headers=headers, **arguments)
        took = (time.monotonic_ns() - sent) / 1e6
        if not answer.is_success or answer.status_code == 202:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return sent, took

    def tell(self, what: str, ms: float) -> None:
        """One figure."""
        if self.counted:
            report(what=what, nodes=self.nodes, ms=ms)

    async def change(self, what: str, method: str, path: str, **arguments: Any) -> None:
        """An operation, from the request to the answer, with the cluster at rest before."""
        await self.rest()
        _, took = await self.ask(method, path, **arguments)
        self.tell(what, took)

    async def add(self, what: str, made: Package) -> None:
        """Upload a package as a new model."""
        await self.change(what, "POST", MODELS, content=made.path.read_bytes(), headers=WHEEL)

    async def online(self, what: str, name: str, **body: Any) -> None:
        """From the request to the first record at the sink, and to the answer."""
        await self.rest()
        self.arrived.unlink(missing_ok=True)
        sent, took = await self.ask("POST", f"{MODELS}/default/{name}/online", json=body)
        self.tell(f"{what}: first record", (await self.first_record() - sent) / 1e6)
        self.tell(f"{what}: answer", took)

    async def first_record(self) -> int:
        """When the first record arrived, by the clock of the process that it arrived in."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(FileNotFoundError):
                    if (text := self.arrived.read_bytes()).endswith(b"\n"):
                        return min(map(int, text.split()))
                await asyncio.sleep(0.005)

    async def offline(self, name: str, what: str = "") -> None:
        """Take a model offline; it runs at its rate for a moment before."""
        await asyncio.sleep(0.2)
        _, took = await self.ask("POST", f"{MODELS}/default/{name}/offline")
        if what:
            self.tell(what, took)

    async def rest(self) -> None:
        """Wait until every node has as many processes as it had at first, its warm worker among them, and none of them
        has had anything to do for a while."""
        looks = 2 if self._at_rest else 5
        async with asyncio.timeout(PATIENCE):
            before, unchanged = self._processes(), 0
            while unchanged < looks:
                await asyncio.sleep(REST)
                now = self._processes()
                quiet = now == before and self._at_rest in ([], [len(each) for each in now])
                before, unchanged = now, unchanged + 1 if quiet else 0
        self._at_rest = [len(each) for each in before]

    def _processes(self) -> list[dict[int, float]]:
        """For each node: its descendants -> processor time that each has used."""
        found: list[dict[int, float]] = []
        for node in self.cluster.nodes:
            found.append({})
            for process in psutil.Process(node.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    found[-1][process.pid] = times.user + times.system
        return found


@contextlib.asynccontextmanager
async def bench(nodes: int, options: tuple[str, ...] = ()) -> AsyncIterator[Bench]:
    """A cluster that is ready, with connections to all its nodes. `options` of `penstock node`."""
    with tempfile.TemporaryDirectory(prefix="w6-") as scratch:
        # uv's own cache would outlive the run: the wheels are new each time
        os.environ["UV_CACHE_DIR"] = str(Path(scratch) / "uv-cache")
        async with LocalCluster(nodes, _ports(nodes), options=options) as cluster, contextlib.AsyncExitStack() as stack:
            clients = []
            for node in cluster.nodes:
                client = httpx.AsyncClient(base_url=node.url, timeout=PATIENCE, trust_env=False)
                clients.append(await stack.enter_async_context(client))
                (await client.get("/readyz")).raise_for_status()
            made = Bench(cluster, clients, Path(scratch))
            await made.rest()
            yield made


def _ports(nodes: int) -> int:
    """The first of so many free ports in a row."""
    for _ in range(50):
        first = int(free_ports(1)[0])
        if first + nodes < 65536 and not {str(first + i) for i in range(nodes)} & _listening():
            return first
    raise RuntimeError(f"no {nodes} free ports in a row")


def _listening() -> set[str]:
    return {str(each.laddr.port) for each in psutil.net_connections("tcp") if each.laddr}


# ---- every operation -------------------------------------------------------------------------------------------------


async def operations(nodes: int, models: int) -> None:
    """Every operation; the first model is not counted."""
    async with bench(nodes) as cluster:
        for number in range(models + 1):
            cluster.counted = number > 0
            await one_model(cluster, f"first-{number}")
        await environments(cluster)


async def one_model(cluster: Bench, name: str) -> None:
    """The life of a model."""
    first, second = cluster.packed(name), cluster.packed(name, "2")
    path = f"{MODELS}/default/{name}"
    await cluster.add("add", first)
    await cluster.online("online", name)
    await cluster.offline(name, "offline")
    if cluster.nodes > 1:
        await cluster.online("online on every node", name, executors=cluster.nodes)
        await cluster.offline(name)
    await cluster.online("online, new configuration", name, config={"note": name})
    await cluster.offline(name)
    await cluster.change("update", "PUT", path, content=second.path.read_bytes(), headers=WHEEL)
    await cluster.change("rollback", "POST", f"{path}/rollback")
    await cluster.change("delete", "DELETE", path)


async def environments(cluster: Bench) -> None:
    """Two models that require the same wheel, which no node has seen: the first one brings its environment about."""
    wheel = tiny_wheel(cluster.scratch / "wheels", f"1.{time.time_ns()}")
    first, second = (cluster.packed(f"needy-{number}", dependency=wheel) for number in range(2))
    await cluster.add("add, new environment", first)
    await cluster.add("add, known environment", second)
    for name, what in (("needy-0", "first time"), ("needy-0", "again"), ("needy-1", "again")):
        await cluster.online(f"online in its own environment, {what}", name)
        await cluster.offline(name)


# ---- does anything grow? ---------------------------------------------------------------------------------------------


async def cycles(number: int) -> None:
    """Online and offline again, one straight after the other."""
    async with bench(1) as cluster:
        cluster.counted = False
        await cluster.add("add", cluster.packed("cycled"))
        await cluster.rest()
        bus = Bus(cluster.cluster.redis or "", ClusterSettings(prefix=cluster.cluster.cluster))
        try:
            await observe(cluster, bus, 0, 0.0, 0.0, rested=True)
            for cycle in range(1, number + 1):
                cluster.arrived.unlink(missing_ok=True)
                sent, _ = await cluster.ask("POST", f"{MODELS}/default/cycled/online")
                first = (await cluster.first_record() - sent) / 1e6
                _, offline = await cluster.ask("POST", f"{MODELS}/default/cycled/offline")
                await observe(cluster, bus, cycle, first, offline)
            await cluster.rest()
            await observe(cluster, bus, number, first, offline, rested=True)
        finally:
            await bus.close()


async def observe(cluster: Bench, bus: Bus, cycle: int, online: float, offline: float, *, rested: bool = False) -> None:
    """What the node holds: processes, descriptors, memory, disk; and what Redis does."""
    agent = psutil.Process(cluster.cluster.nodes[0].pid)
    memory = await bus.command("INFO", "memory")
    report(
        cycle=cycle, rested=float(rested), online=online, offline=offline,
        processes=1.0 + len(agent.children(recursive=True)), descriptors=float(agent.num_fds()),
        memory=agent.memory_info().rss / 2**20, disk=_size(cluster.cluster.directory) / 2**10,
        redis=float(memory["used_memory"]) / 2**20,
    )  # fmt: skip


def _size(directory: Path) -> int:
    """Bytes on the disk, directories included."""
    total = 0
    for folder, _, names in os.walk(directory):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            with contextlib.suppress(OSError):
                total += os.lstat(path).st_blocks * 512
    return total


def main(what: str, *numbers: str) -> None:
    """See the module."""
    asyncio.run(operations(*map(int, numbers)) if what == "operations" else cycles(*map(int, numbers)))


if __name__ == "__main__":
    main(*sys.argv[1:])
