"""The node agent: everything that one node does in the control plane, in one asyncio loop.

Four tasks: stay a member (`membership`), take part in elections (`leader`), reconcile (look, decide if this node leads,
converge, report), publish metrics. No code of a user runs here, and no record passes but pushed ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from importlib import metadata
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import psutil

from penstock.clock import Clock, SystemClock
from penstock.cluster import presentation
from penstock.cluster.bus import Bus, BusDown
from penstock.cluster.cancellation import end
from penstock.cluster.catalogue import DEFAULT_GROUP, Catalogue, full_name, present
from penstock.cluster.description import describe
from penstock.cluster.journal import Journal
from penstock.cluster.launcher.protocol import Launcher, WorkerSpec
from penstock.cluster.leader import Election
from penstock.cluster.membership import Membership
from penstock.cluster.metrics import EXPIRY, HeldKeys, Metering, NodeMetrics
from penstock.cluster.plan import ModelEntry, status
from penstock.cluster.routing import Questions
from penstock.cluster.runner import Runner
from penstock.cluster.service import (
    Conflict,
    Found,
    Health,
    LogEntry,
    MetricsView,
    ModelView,
    NodeView,
    NoRoom,
    NotFound,
    Page,
    PlacementView,
    Pushed,
    Unavailable,
)
from penstock.cluster.stewardship import Steward
from penstock.cluster.view import EMPTY, View, look
from penstock.cluster.workers import Workers
from penstock.errors import ClusterError, PenstockError
from penstock.settings import ClusterSettings, RunSettings

_LOOPBACK = ("localhost", "127.", "::1")


class NodeAgent:
    """One node of a cluster; implements `NodeService`.

    `redis` is a URL, `name` unique in the cluster, `address` where its HTTP gateway is reached by other nodes. `bind`:
    the IP address for the data sockets of its workers; default: `ipc` sockets when `address` is a loopback one, else
    the host of `address`. `transport` carries requests to other nodes; default: HTTP.
    """

    def __init__(
        self,
        redis: str,
        *,
        name: str,
        address: str,
        settings: ClusterSettings | None = None,
        run_settings: RunSettings | None = None,
        role: str = "compute",
        slots: int | None = None,
        bind: str | None = None,
        launcher: Launcher | None = None,
        clock: Clock | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._name, self._address, self._role = name, address, role
        self._settings = settings or ClusterSettings()
        self._clock: Clock = clock or SystemClock()
        self._slots = slots or os.cpu_count() or 1
        self._bind = bind if bind is not None else _data_address(address)
        self._launcher = launcher
        self._bus = Bus(redis, self._settings)
        self._journal = Journal(self._bus, name)
        self._metering = Metering(name, self._clock)
        self._runner = Runner(
            name, self._bus, self._journal, self._metering, self._clock, run_settings or RunSettings(), self._wake
        )
        self._membership = Membership(self._bus, name, self._lease_fields, self._clock, self._joined, self._lost)
        self._election = Election(self._bus, name, self._membership, self._clock, self._wake)
        self._held = HeldKeys()
        self._steward = Steward(self._bus, name, self._clock, self._held)
        self._catalogue = Catalogue(self._bus, name)
        self._questions = Questions(name, self._bus, self._runner, transport)
        self._process = psutil.Process()
        self._view: View = EMPTY
        self._looking = asyncio.Lock()
        self._metrics: dict[str, NodeMetrics] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._data_dir: str | None = None
        self._applied = 0
        self._problem = "it is starting"
        self._synchronised = False

    # ---- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, join, and begin to serve. Raises `ClusterError`; nothing is left behind then."""
        try:
            self._data_dir = tempfile.mkdtemp(prefix="penstock-node-")
            spec = WorkerSpec(
                name=self._name, python=sys.executable, data_dir=self._data_dir, bind=self._bind, log_file=None
            )
            self._runner.workers = Workers(self._make_launcher(), spec, self._settings, self._runner)
            await self._bus.start()
            await self._membership.join()
            await self._questions.start()
            await self._joined(self._membership.incarnation)
            await self._election.claim()
        except BaseException:
            await self.stop()
            raise
        self._tasks = [
            asyncio.create_task(work, name=f"{self._name}-{what}")
            for what, work in (
                ("membership", self._membership.run()),
                ("election", self._election.run()),
                ("reconcile", self._reconcile()),
                ("metrics", self._publish()),
            )
        ]

    async def stop(self) -> None:
        """Leave the cluster, stop and reap all workers, release everything. May be called twice."""
        tasks, self._tasks = self._tasks, []
        await end(*tasks)
        self._problem, self._synchronised = "it is stopping", False
        # Workers first: others take over only what surely runs here no more.
        if self._data_dir is not None and hasattr(self._runner, "workers"):
            await self._runner.fence(grace=3.0)
        with contextlib.suppress(ClusterError):
            await self._journal.flush()
        await self._membership.leave()
        await self._questions.close()
        await self._bus.close()
        if self._data_dir is not None:
            shutil.rmtree(self._data_dir, ignore_errors=True)
            self._data_dir = None

    async def __aenter__(self) -> NodeAgent:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _make_launcher(self) -> Launcher:
        if self._launcher is not None:
            return self._launcher
        from penstock.cluster.launcher.process import ProcessLauncher

        return ProcessLauncher()

    def _wake(self) -> None:
        self._bus.bell.set()

    def _lease_fields(self) -> dict[str, str | int | float]:
        return {
            "address": self._address,
            "role": self._role,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "cpus": os.cpu_count() or 1,
            "memory": psutil.virtual_memory().total,
            "slots": self._slots,
            "applied": self._applied,
            "version": _version(),
            "python": platform.python_version(),
        }

    async def _joined(self, incarnation: int) -> None:
        self._runner.joined(incarnation)
        self._wake()

    async def _lost(self, reason: str) -> None:
        self._synchronised, self._problem = False, reason
        self._journal.say("node.fenced", f"node {self._name} stopped its executors: {reason}", level="error")
        await self._runner.fence()

    # ---- reconciling ------------------------------------------------------------------------------------------------

    async def _reconcile(self) -> None:
        while True:
            again = False
            try:
                again = await self._step()
            except BusDown as error:
                self._problem = error.message
            except PenstockError as error:
                self._problem = error.message
                self._journal.say("node.problem", error.message, level="error")
            if not again:
                await self._bus.wait(self._settings.poll)

    async def _step(self) -> bool:
        """Look, decide, converge, report; whether there is a reason to look again at once."""
        view = await self._look()
        if not self._membership.member:
            return False
        changed = False
        if term := self._election.term:
            changed = await self._steward.act(view, term)
        self._runner.apply(view.models)
        told = await self._runner.flush()
        await self._journal.flush()
        if told or changed:
            await self._bus.ring()
            return True
        self._applied = int(view.rev)
        self._synchronised, self._problem = True, ""
        return False

    async def _look(self) -> View:
        async with self._looking:
            self._view = await look(self._bus, self._view)
            return self._view

    async def _publish(self) -> None:
        """Publish this node's metrics and read those of the others, each second."""
        while True:
            workers = self._runner.workers
            workers.refill()
            workers.trim_logs()
            own = self._metering.report(self._process.memory_info().rss, len(workers.pids()))
            with contextlib.suppress(ClusterError):
                body = msgspec.json.encode(own)
                await self._bus.command("SET", self._bus.key("metrics", self._name), body, "PX", round(EXPIRY * 1000))
                await self._gather(own)
            await asyncio.sleep(min(1.0, self._settings.poll))

    async def _gather(self, own: NodeMetrics) -> None:
        names = sorted(self._view.members)
        found = {self._name: own}
        if names:
            texts = await self._bus.command("MGET", *(self._bus.key("metrics", name) for name in names))
            for name, text in zip(names, texts, strict=True):
                if text is not None and name != self._name:
                    found[name] = msgspec.json.decode(text, type=NodeMetrics)
        self._metrics = found
        self._held.learn(found.values(), self._view.models)

    # ---- about this node --------------------------------------------------------------------------------------------

    @property
    def node_id(self) -> str:
        """This node's name."""
        return self._name

    async def ready(self) -> list[str]:
        """See `NodeService`."""
        problems = []
        if not self._membership.member:
            problems.append(self._membership.problem)
        if not self._synchronised:
            problems.append(self._problem or "it has not seen the catalogue yet")
        return list(dict.fromkeys(problems))

    async def health(self) -> Health:
        """See `NodeService`."""
        return Health(
            node=self._name,
            incarnation=self._membership.incarnation,
            leader=bool(self._election.term),
            problems=await self.ready(),
        )

    # ---- views ------------------------------------------------------------------------------------------------------

    async def _fresh(self) -> View:
        """The present view; the latest one while Redis is away. Raises `Unavailable` when there has been none."""
        try:
            return await self._look()
        except BusDown:
            if self._view is EMPTY:
                raise
            return self._view

    async def nodes(self) -> list[NodeView]:
        """See `NodeService`."""
        return presentation.node_views(await self._fresh(), self._metrics)

    async def models(self) -> list[ModelView]:
        """See `NodeService`."""
        return self._models(await self._fresh())

    def _models(self, view: View) -> list[ModelView]:
        return [presentation.model_view(state, self._metrics.values()) for _, state in sorted(view.models.items())]

    async def model(self, name: str) -> ModelView:
        """See `NodeService`."""
        name = full_name(name)
        view = await self._fresh()
        if name not in view.models:
            raise NotFound(f"there is no model {name!r}", remedy="penstock model list shows those that there are")
        return presentation.model_view(view.models[name], self._metrics.values())

    async def placement(self, model: str) -> PlacementView:
        """See `NodeService`."""
        name = full_name(model)
        view = await self._fresh()
        if name not in view.models:
            raise NotFound(f"there is no model {name!r}")
        return presentation.placement_view(view.models[name], self._metrics.values())

    async def metrics(self) -> MetricsView:
        """See `NodeService`."""
        view, parts = self._view, list(self._metrics.values())
        return MetricsView(
            nodes=presentation.node_views(view, self._metrics),
            models=self._models(view),
            channels={name: presentation.channel_views(state, parts) for name, state in sorted(view.models.items())},
        )

    async def log(self, model: str | None = None, limit: int = 100, after: str | None = None) -> list[LogEntry]:
        """See `NodeService`."""
        return await self._journal.read(None if model is None else full_name(model), limit, after)

    def follow(self, model: str | None = None, after: str | None = None) -> AsyncIterator[LogEntry]:
        """See `NodeService`."""
        return self._journal.follow(None if model is None else full_name(model), after)

    # ---- operations -------------------------------------------------------------------------------------------------

    async def _entry(self, name: str) -> ModelEntry:
        view = await self._look()
        if name not in view.models:
            raise NotFound(f"there is no model {name!r}", remedy="penstock model list shows those that there are")
        return view.models[name].entry

    async def add_model(self, path: str, name: str | None = None) -> ModelView:
        """See `NodeService`."""
        target = present(path)
        wanted = None if name is None else full_name(name)
        if wanted is not None and wanted in (await self._look()).models:
            raise Conflict(f"there is a model {wanted!r} already", remedy="delete it first, or choose another name")
        topology = await describe(target, {}, self._settings.worker_start)
        wanted = wanted or f"{DEFAULT_GROUP}/{topology.flow}"
        full_name(wanted)
        await self._catalogue.add(wanted, target, topology)
        return await self.model(wanted)

    async def delete_model(self, name: str) -> None:
        """See `NodeService`."""
        await self._catalogue.delete(await self._entry(full_name(name)))

    async def online(self, name: str, config: dict[str, Any] | None = None, executors: int | None = None) -> ModelView:
        """See `NodeService`."""
        name = full_name(name)
        entry = await self._entry(name)
        if entry.desired == "online" and not entry.error:
            raise Conflict(f"{name!r} is online already", remedy="take it offline first")
        # The file may have changed since it was added, and the configuration may shape the flow.
        topology = await describe(entry.path, config or {}, self._settings.worker_start)
        generation = await self._catalogue.online(entry, topology, config or {}, executors)
        deadline = self._settings.worker_start + self._settings.request
        state = await self._until(name, {"online", "finished", "failed"}, generation, deadline)
        view = await self.model(name)
        if state == "failed":
            raise ClusterError(
                f"{name!r} cannot run: {view.error}",
                remedy="correct it and bring it online again; keyed state starts empty",
            )
        nodes = ", ".join(sorted({executor.node for executor in view.executors}))
        text = f"model {name} is {state}: {len(view.executors)} executors on {nodes}"
        self._journal.say("model.running", text, model=name)
        self._wake()
        return view

    async def offline(self, name: str) -> ModelView:
        """See `NodeService`."""
        name = full_name(name)
        generation = await self._catalogue.offline(await self._entry(name))
        await self._until(name, {"offline"}, generation, self._settings.request)
        return await self.model(name)

    async def _until(self, name: str, wanted: set[str], generation: int, seconds: float) -> str:
        """Wait until the model's status is one of `wanted`. Raises `Unavailable` at the deadline."""
        state = "unknown"
        try:
            async with asyncio.timeout(seconds):
                while True:
                    with contextlib.suppress(BusDown):
                        view = await self._look()
                        if name not in view.models or view.models[name].entry.generation != generation:
                            raise Conflict(f"{name!r} was changed by somebody else meanwhile")
                        if (state := status(view.models[name])) in wanted:
                            return state
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise Unavailable(
                f"{name!r} is {state} after {seconds:g} s, not yet {' or '.join(sorted(wanted))}",
                remedy="it goes on in the background: look at its status and at the events",
            ) from None

    # ---- data -------------------------------------------------------------------------------------------------------

    async def push(
        self, model: str, source: str, records: list[Any], client: str | None = None, seq: int | None = None
    ) -> Pushed | NoRoom:
        """See `NodeService`."""
        return await self._questions.push(await self._known(model), full_name(model), source, records, client, seq)

    async def lookup(self, model: str, step: str, key: Any) -> Found:
        """See `NodeService`."""
        return await self._questions.lookup(await self._known(model), full_name(model), step, key)

    async def listing(self, model: str, step: str, limit: int = 100, cursor: str | None = None) -> Page:
        """See `NodeService`."""
        return await self._questions.listing(await self._known(model), full_name(model), step, limit, cursor)

    async def results(self, model: str, step: str | None = None, limit: int = 100) -> list[Any]:
        """See `NodeService`."""
        return await self._questions.results(await self._known(model), full_name(model), step, limit)

    async def _known(self, model: str) -> View:
        """The view in memory; a fresh one when it does not show the model running."""
        name = full_name(model)
        state = self._view.models.get(name)
        if state is None or state.plan is None or state.entry.desired != "online":
            return await self._fresh()
        return self._view

    async def internal(self, token: str, body: bytes) -> bytes:
        """See `NodeService`."""
        return await self._questions.serve(token, body)


def _data_address(address: str) -> str | None:
    """The IP address for data sockets; `None` (`ipc`) when other machines cannot reach this node anyway."""
    host = urlsplit(address).hostname or "localhost"
    if host.startswith(_LOOPBACK):
        return None
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ClusterError(
            f"the address of this node, {address!r}, cannot be resolved: {error.strerror}",
            remedy="give an IP address of this machine with --bind",
        ) from error


def _version() -> str:
    try:
        return metadata.version("penstock")
    except metadata.PackageNotFoundError:
        return "unknown"
