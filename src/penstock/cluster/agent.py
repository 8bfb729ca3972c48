"""The node agent: everything that one node does in the control plane, in one asyncio loop.

Five tasks: take part in transactions and stay a member (`participation`), take part in elections (`leader`), reconcile
(decide if this node leads, converge, report), publish metrics, tidy. No code of a user runs here, and no record passes
but pushed ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil

from penstock.clock import Clock, SystemClock
from penstock.cluster import presentation
from penstock.cluster.addresses import data_address
from penstock.cluster.bus import Bus, BusDown
from penstock.cluster.cancellation import end
from penstock.cluster.checkpoint_places import Places
from penstock.cluster.checkpointing import Keeper, keeper
from penstock.cluster.data_directory import DataDirectory
from penstock.cluster.event_log import SAID, EventLog
from penstock.cluster.launcher.protocol import Launcher, WorkerSpec
from penstock.cluster.leader import Election
from penstock.cluster.library import Library
from penstock.cluster.local_journal import LocalJournal
from penstock.cluster.metrics import HeldKeys, Metering, NodeMetrics, exchange_metrics
from penstock.cluster.move_requests import Moves
from penstock.cluster.names import full_name
from penstock.cluster.neighbours import Neighbours
from penstock.cluster.node_description import describe_node
from penstock.cluster.operations import Operations
from penstock.cluster.participation import Participation
from penstock.cluster.patience import Patience
from penstock.cluster.preparation import Preparation
from penstock.cluster.rebalancing import Rebalancing
from penstock.cluster.reconciling import Reconciler
from penstock.cluster.routing import Questions
from penstock.cluster.runner import Runner
from penstock.cluster.service import (
    ANY_LANE,
    ASK,
    Addresses,
    Ask,
    Found,
    Health,
    Lane,
    LogEntry,
    MetricsView,
    ModelView,
    MoveOrder,
    NodeView,
    NoRoom,
    NotFound,
    OperationView,
    Outcome,
    PackageView,
    Page,
    PlacementView,
    Pushed,
    RebalanceView,
    SplitOrder,
    Unavailable,
    VersionView,
)
from penstock.cluster.split_requests import Splits
from penstock.cluster.stewardship import Steward
from penstock.cluster.store import CatalogueStore, Sight
from penstock.cluster.verification import Verifier
from penstock.cluster.view import EMPTY, View, view_of
from penstock.cluster.workers import Workers
from penstock.errors import ClusterError, PenstockError
from penstock.model.archive import Limits
from penstock.model.environment import Environments
from penstock.settings import ClusterSettings, RunSettings

_TIDY_EVERY = 5.0
"""Seconds between two looks for packages that nobody needs."""


class NodeAgent:
    """One node of a cluster; implements `NodeService`.

    `redis` is a URL, `name` unique in the cluster, `address` where its HTTP gateway is reached by other nodes. `bind`:
    the IP address for the data sockets of its workers; default: `ipc` sockets when `address` is a loopback one, else
    the host of `address`. `data_dir`: where its library, its environments and its journal are kept; `None`: in a
    temporary directory. `transport` carries requests to other nodes; default: HTTP.
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
        data_dir: Path | None = None,
        launcher: Launcher | None = None,
        clock: Clock | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._name, self._address, self._role = name, address, role
        self._settings = settings or ClusterSettings()
        self._run_settings = run_settings or RunSettings()
        self._clock: Clock = clock or SystemClock()
        self._slots = slots or os.cpu_count() or 1
        self._bind = bind if bind is not None else data_address(address)
        self._launcher, self._transport = launcher, transport
        self._wanted, self._limits = data_dir, Limits()
        self._data: DataDirectory | None = None
        self._bus = Bus(redis, self._settings)
        self._events = EventLog(self._bus, name)
        self._metering = Metering(name, self._clock)
        self._held = HeldKeys()
        self._moves = Moves(self._bus, name, self._fresh)
        self._splits = Splits(self._bus, name, self._fresh)
        self._rebalancing = Rebalancing(self._settings, self._clock, self._events, self._moves.begin, self._splits.wish)
        self._steward = Steward(self._bus, name, self._held)
        self._process = psutil.Process()
        self._view: View = EMPTY
        """The latest."""
        self._known_view: View = EMPTY
        """The latest but those of a Redis that has lost its memory: what runs goes on as this one says."""
        self._woken = asyncio.Event()
        self._metrics: dict[str, NodeMetrics] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._problem = "it is starting"
        self._library: Library
        self._verifier: Verifier
        self._runner: Runner
        self._questions: Questions
        self._keeper: Keeper
        self._preparation: Preparation
        self._participation: Participation
        self._election: Election
        self._operations: Operations
        self._patience: Patience
        self._reconciler: Reconciler
        self._running = False

    # ---- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, join, and begin to serve. Raises `ClusterError`; nothing is left behind then."""
        try:
            self._data = DataDirectory(self._wanted)
            await self._assemble(self._data.path, self._data.scratch)
            await self._bus.start()
            await self._questions.start()
            self._runner.workers.refill()
            self._running = True
            await self._participation.start()
        except BaseException:
            await self.stop()
            raise
        self._tasks = [
            asyncio.create_task(work, name=f"{self._name}-{what}")
            for what, work in (
                ("election", self._election.run()),
                ("reconcile", self._reconciler.run()),
                ("metrics", self._publish()),
                ("rebalancing", self._rebalancing.run()),
                ("silence", self._reconciler.listen()),
                ("tidy", self._tidy()),
            )
        ]

    async def _assemble(self, data: Path, scratch: Path) -> None:
        """Make the parts; those that need the disk read it."""
        settings = self._settings
        self._library = Library(data, self._limits)
        await self._library.open()
        environments = Environments(data / "environments")
        self._verifier = Verifier()
        self._runner = Runner(
            self._name, self._bus, self._events, self._metering, self._clock, self._run_settings, self._wake,
            lambda digest: self._preparation.place(digest),
        )  # fmt: skip
        spec = WorkerSpec(
            name=self._name, python=sys.executable, data_dir=str(scratch), bind=self._bind, log_file=None,
            capture_output=True,
        )  # fmt: skip
        self._runner.workers = Workers(self._make_launcher(), spec, settings, self._runner)
        self._questions = Questions(self._name, self._bus, self._runner, self, self._transport)
        self._runner.places = Places(settings.checkpoints, settings.prefix)
        self._keeper = keeper(
            self._name, self._bus, self._runner.places, self._events, self._questions, self._run_settings,
            lambda: self._election.term, self._clock,
        )  # fmt: skip
        self._steward.settled = self._keeper.settled
        neighbours = Neighbours(self._name, self._questions, lambda: self._participation.sight, settings)
        self._preparation = Preparation(
            self._library, environments, self._verifier, self._runner, neighbours, self._events,
            lambda: self._participation.sight,
        )  # fmt: skip
        store = CatalogueStore(
            self._bus, self._name, round(settings.lease * 1000), self._lease_fields, replicas=settings.replicas
        )
        journal = LocalJournal(data / "journal.json")
        self._participation = Participation(
            self._name, store, journal, self._preparation, self._clock, settings,
            found_after=settings.found_after, on_sight=self._saw, on_standing=self._stands,
        )  # fmt: skip
        self._store = store
        self._election = Election(self._bus, self._name, self._participation, self._clock, self._wake)
        self._operations = Operations(
            self._name, store, self._participation, self._preparation, settings, lambda: self._view
        )
        self._patience = Patience(self._known, self._participation, self._clock, settings.request)
        self._reconciler = Reconciler(
            self._bus, store, self._clock, self._events, self._participation, self._election, self._steward,
            self._keeper, self._runner, self._woken,
        )  # fmt: skip
        await self._verifier.start()

    async def stop(self) -> None:
        """Leave the cluster, stop and reap all workers, release everything. May be called twice."""
        tasks, self._tasks = self._tasks, []
        await end(*tasks)
        self._problem = "it is stopping"
        if hasattr(self, "_verifier"):
            # Workers first: others take over only what surely runs here no more.
            await self._keeper.close()
            await self._runner.fence(grace=3.0)
            with contextlib.suppress(ClusterError):
                await self._events.flush()
            if self._running:
                await self._participation.stop()
            await self._questions.close()
            await self._verifier.close()
        await self._bus.close()
        if self._data is not None:
            self._data.close()

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
        self._woken.set()

    def _lease_fields(self) -> dict[str, str | int | float]:
        return describe_node(self._address, self._role, self._slots, self._runner.places.mark)

    # ---- reconciling ------------------------------------------------------------------------------------------------

    def _saw(self, sight: Sight) -> None:
        self._take_in(sight)
        self._wake()

    def _take_in(self, sight: Sight) -> None:
        self._view = view_of(sight, self._preparation.describe)
        self._reconciler.saw(self._view)
        if self._view.lineage or not self._known_view.lineage:
            self._known_view = self._view

    def _stands(self, trusted: bool, problem: str) -> None:
        if trusted:
            self._runner.joined(self._participation.incarnation)
        self._wake()

    async def _tidy(self) -> None:
        """Keep the catalogue in Redis small, and the disk."""
        revision = -1
        while True:
            await asyncio.sleep(min(_TIDY_EVERY, 5 * self._settings.poll))
            sight = self._participation.sight
            if not sight.store.lineage or not self._participation.ready:
                continue
            with contextlib.suppress(BusDown):
                if self._election.term:
                    await self._store.archive()
                    await self._take_back()
            try:
                if sight.store.rev != revision or self._library.staged():
                    tidy = await self._preparation.tidy(sight.store)
                    revision = sight.store.rev if tidy and await self._preparation.complete(sight.store) else -1
            except (PenstockError, OSError) as error:
                self._events.say("node.problem", f"the library could not be tidied: {error}", level="warning")

    async def _take_back(self) -> None:
        """Live updates that have failed: the catalogue is to name the version that runs."""
        for name, state in self._view.models.items():
            plan = state.plan
            if plan is None or plan.failed_upgrade is None or plan.failed_upgrade.revision != state.entry.revision:
                continue
            with contextlib.suppress(PenstockError):  # tried again
                await self._operations.take_back(name, plan)

    async def _publish(self) -> None:
        """Publish this node's metrics and read those of the others, each second; keep workers warm and logs short."""
        while True:
            workers = self._runner.workers
            if self._participation.trusted:
                workers.refill()
            workers.trim_logs()
            own = self._metering.report(self._process.memory_info().rss, len(workers.pids()))
            own.refused = self._steward.refused + self._runner.refused
            with contextlib.suppress(ClusterError):
                self._metrics = await exchange_metrics(self._bus, own, sorted(self._view.members))
                self._held.learn(self._metrics.values(), self._view.models)
                self._rebalancing.observe(self._view, self._metrics, bool(self._election.term))
            await asyncio.sleep(min(1.0, self._settings.poll))

    # ---- what other nodes ask ---------------------------------------------------------------------------------------

    async def piece(self, digest: str, offset: int, size: int) -> tuple[bytes, int] | None:
        """See `Neighbourly`."""
        return await self._library.read(digest, offset, size)

    def promise(self) -> bool:
        """See `Neighbourly`."""
        return self._participation.promise()

    # ---- about this node --------------------------------------------------------------------------------------------

    @property
    def node_id(self) -> str:
        """This node's name."""
        return self._name

    async def ready(self) -> list[str]:
        """See `NodeService`."""
        if not self._running:
            return [self._problem]
        if self._participation.ready:
            return []
        return [self._participation.problem or self._reconciler.problem or "it is synchronising with the catalogue"]

    async def health(self) -> Health:
        """See `NodeService`."""
        return Health(
            node=self._name,
            incarnation=self._participation.incarnation if self._running else 0,
            leader=bool(self._running and self._election.term),
            problems=await self.ready(),
        )

    # ---- views ------------------------------------------------------------------------------------------------------

    async def _fresh(self) -> View:
        """The present view; the latest one while Redis is away, or has lost its memory. Raises `Unavailable` when there
        has been none."""
        if not self._running:
            raise Unavailable(self._problem)
        try:
            self._take_in(await self._store.look())
        except BusDown:
            if self._known_view is EMPTY:
                raise
        return self._known_view

    async def nodes(self) -> list[NodeView]:
        """See `NodeService`."""
        return self._rebalancing.nodes(presentation.node_views(await self._fresh(), self._metrics))

    async def models(self) -> list[ModelView]:
        """See `NodeService`."""
        return self._models(await self._fresh())

    def _models(self, view: View) -> list[ModelView]:
        return [self._present(view, name) for name in sorted(view.models) if view.models[name].entry.digest]

    def _present(self, view: View, name: str) -> ModelView:
        state = view.models.get(name)
        if state is None or not state.entry.digest:
            raise NotFound(f"there is no model {name!r}", remedy="penstock model list shows those that there are")
        manifest = self._preparation.manifest(state.entry.digest)
        return self._rebalancing.model(presentation.model_view(state, self._metrics.values(), manifest))

    async def model(self, name: str) -> ModelView:
        """See `NodeService`."""
        return self._present(await self._fresh(), full_name(name))

    async def placement(self, model: str) -> PlacementView:
        """See `NodeService`."""
        name = full_name(model)
        view = await self._fresh()
        if name not in view.models:
            raise NotFound(f"there is no model {name!r}")
        placed = presentation.placement_view(view.models[name], self._metrics.values())
        return self._rebalancing.placement(placed, view)

    async def rebalance(
        self, *, dry_run: bool = False, strategy: str | None = None, model: str | None = None
    ) -> RebalanceView:
        """See `NodeService`."""
        name = None if model is None else full_name(model)
        view = await self._fresh()
        return await self._rebalancing.rebalance(view, dry_run=dry_run, strategy=strategy, model=name)

    async def metrics(self) -> MetricsView:
        """See `NodeService`."""
        view, parts = self._view, list(self._metrics.values())
        return MetricsView(
            nodes=self._rebalancing.nodes(presentation.node_views(view, self._metrics)),
            models=self._models(view),
            channels={name: presentation.channel_views(state, parts) for name, state in sorted(view.models.items())},
        )

    async def log(self, model: str | None = None, limit: int = 100, after: str | None = None) -> list[LogEntry]:
        """See `NodeService`."""
        return await self._events.read(None if model is None else full_name(model), limit, after)

    def follow(self, model: str | None = None, after: str | None = None) -> AsyncIterator[LogEntry]:
        """See `NodeService`."""
        return self._events.follow(None if model is None else full_name(model), after)

    async def logs(self, model: str, limit: int = 100, after: str | None = None) -> list[LogEntry]:
        """See `NodeService`."""
        name = full_name(model)
        self._present(await self._fresh(), name)
        return await self._events.read(name, limit, after, SAID)

    def follow_logs(self, model: str, after: str | None = None) -> AsyncIterator[LogEntry]:
        """See `NodeService`."""
        return self._events.follow(full_name(model), after, SAID)

    # ---- operations -------------------------------------------------------------------------------------------------

    async def receive(self, chunks: AsyncIterator[bytes]) -> PackageView:
        """See `NodeService`."""
        self._check_ready()
        package = await self._library.receive(chunks, limit=self._limits.file)
        self._participation.uploaded(package.digest, self._settings.upload_kept)
        manifest = package.manifest
        return PackageView(
            digest=package.digest, size=package.size, name=manifest.name or "", group=manifest.group,
            version=manifest.version, flow=manifest.flow, requires=list(manifest.requires), recovery=manifest.recovery,
            schema={name: msgspec.to_builtins(setting) for name, setting in manifest.config.items()},
        )  # fmt: skip

    def _check_ready(self) -> None:
        """Raises `Unavailable` on a node that is not synchronised: what it knows may be old."""
        if not self._running or not self._participation.ready:
            problem = self._participation.problem if self._running else self._problem
            raise Unavailable(f"node {self._name} is not ready: {problem or 'it is synchronising'}")

    async def _answered(self, outcome: Outcome) -> Outcome:
        """With the model as it is afterwards."""
        done = outcome.operation
        if done is not None and not outcome.pending and done.kind != "delete":
            with contextlib.suppress(NotFound):
                outcome.model = await self.model(done.model)
        return outcome

    async def add_model(
        self, digest: str, name: str | None = None, config: dict[str, Any] | None = None, *, ask: Ask = ASK
    ) -> Outcome:
        """See `NodeService`."""
        self._check_ready()
        return await self._answered(await self._operations.add(digest, name, config, ask))

    async def update_model(
        self,
        name: str,
        digest: str | None = None,
        config: dict[str, Any] | None = None,
        *,
        live: bool = False,
        ask: Ask = ASK,
    ) -> Outcome:
        """See `NodeService`."""
        self._check_ready()
        return await self._answered(await self._operations.update(name, digest, config, live, ask))

    async def rollback(self, name: str, to: int | None = None, *, live: bool = False, ask: Ask = ASK) -> Outcome:
        """See `NodeService`."""
        self._check_ready()
        return await self._answered(await self._operations.rollback(name, to, live, ask))

    async def delete_model(self, name: str, *, ask: Ask = ASK) -> Outcome:
        """See `NodeService`."""
        self._check_ready()
        return await self._answered(await self._operations.delete(name, ask))

    async def online(
        self,
        name: str,
        config: dict[str, Any] | None = None,
        executors: int | None = None,
        recovery: str | None = None,
        *,
        replication: dict[str, float] | None = None,
        ask: Ask = ASK,
    ) -> Outcome:
        """See `NodeService`."""
        self._check_ready()
        done = await self._operations.online(name, config, executors, recovery, replication, ask)
        outcome = await self._answered(done)
        if (model := outcome.model) is not None:
            nodes = ", ".join(sorted({executor.node for executor in model.executors}))
            text = f"model {model.name} is {model.status}: {len(model.executors)} executors on {nodes}"
            self._events.say("model.running", text, model=model.name)
            self._wake()
        return outcome

    async def move(
        self, name: str, executor: str, node: str, *, user: str = "", wait: float | None = None
    ) -> MoveOrder:
        """See `NodeService`."""
        self._check_ready()
        return await self._moves.wait(await self._moves.ask(full_name(name), executor, node, user), wait)

    async def split(self, name: str, what: str, *, user: str = "") -> SplitOrder:
        """See `NodeService`."""
        self._check_ready()
        return await self._splits.ask(full_name(name), what, user)

    async def offline(self, name: str, *, ask: Ask = ASK) -> Outcome:
        """See `NodeService`."""
        self._check_ready()
        return await self._answered(await self._operations.offline(name, ask))

    async def versions(self, name: str) -> list[VersionView]:
        """See `NodeService`."""
        await self._fresh()
        return self._operations.versions(name)

    async def operations(self) -> list[OperationView]:
        """See `NodeService`."""
        await self._fresh()
        return self._operations.list()

    async def operation(self, id: str) -> OperationView:
        """See `NodeService`."""
        await self._fresh()
        return await self._operations.show(id)

    async def cancel_operation(self, id: str, user: str = "") -> OperationView:
        """See `NodeService`."""
        await self._fresh()
        return await self._operations.cancel(id, user)

    # ---- data -------------------------------------------------------------------------------------------------------

    async def addresses(self, model: str, source: str) -> Addresses:
        """See `NodeService`."""
        return self._questions.addresses(await self._known(model), full_name(model), source)

    async def push(
        self, model: str, source: str, records: list[Any], client: str | None = None, seq: int | None = None,
        lane: Lane = ANY_LANE,
    ) -> Pushed | NoRoom:  # fmt: skip
        """See `NodeService`."""
        name = full_name(model)

        async def push(view: View) -> Pushed | NoRoom:
            return await self._questions.push(view, name, source, records, client, seq, lane)

        return await self._patience.ask(name, push, repeatable=client is not None and seq is not None)

    async def lookup(self, model: str, step: str, key: Any) -> Found:
        """See `NodeService`."""
        name = full_name(model)
        return await self._patience.ask(name, lambda view: self._questions.lookup(view, name, step, key))

    async def listing(self, model: str, step: str, limit: int = 100, cursor: str | None = None) -> Page:
        """See `NodeService`."""
        name = full_name(model)
        return await self._patience.ask(name, lambda view: self._questions.listing(view, name, step, limit, cursor))

    async def results(self, model: str, step: str | None = None, limit: int = 100) -> list[Any]:
        """See `NodeService`."""
        return await self._questions.results(await self._known(model), full_name(model), step, limit)

    async def _known(self, model: str) -> View:
        """The view in memory; a fresh one when it does not show the model running."""
        name = full_name(model)
        state = self._known_view.models.get(name)
        if state is None or state.plan is None or state.entry.desired != "online":
            return await self._fresh()
        return self._known_view

    async def internal(self, token: str, body: bytes) -> bytes:
        """See `NodeService`."""
        return await self._questions.serve(token, body)
