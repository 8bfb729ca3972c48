"""A node service in memory: enough of a cluster to test what stands in front of it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import msgspec

from penstock.cluster.balance_views import EdgeView, ModelVerdict, MoveView, SituationView
from penstock.cluster.service import (
    ANY_LANE,
    ASK,
    Addresses,
    ChangePlan,
    ChannelView,
    Conflict,
    ExecutorView,
    Found,
    Health,
    LaneView,
    LogEntry,
    MetricsView,
    Misdirected,
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
    ReplicaView,
    RolledBack,
    SplitOrder,
    VersionView,
)
from penstock.errors import FlowError, UsageError
from penstock.model.package import open_package

PARTICIPANTS = ("node-1", "node-2")
"""The nodes of every operation."""


class FakeService:
    """One node, models in a dictionary, records in a list, a counter of the records' `word` as state."""

    node_id = "node-1"

    def __init__(self, room: int = 1000) -> None:
        self.room = room
        self.catalogue: dict[str, ModelView] = {}
        self.packages: dict[str, PackageView] = {}
        self.history: dict[str, list[VersionView]] = {}
        self.operations_: dict[str, OperationView] = {}
        self.waiting: dict = {}
        """Operation -> what it does when it is settled."""
        self.keys: dict[str, str] = {}
        self.asks: list = []
        self.revision = 0
        self.slow = False
        """Operations go on until `settle`."""
        self.refusals: dict[str, str] = {}
        """node -> why it refuses every operation."""
        self.starting: tuple[str, str] | None = None
        """Status and error of a model that was brought online."""
        self.largest = 0
        """Bytes of the largest piece of a package."""
        self.records: list = []
        self.name = "fake"
        """Of its cluster."""
        self.lanes = ["node-1"]
        """The nodes of the lanes of every source."""
        self.urls: dict[str, str] = {}
        """node -> the address that is told of it."""
        self.seen: set[tuple[int, str | None, int | None]] = set()
        self.pushes: list[tuple[int, str | None, int | None, int]] = []
        """(lane, client, seq, records) of what was taken."""
        self.state: dict = {}
        self.reasons: list[str] = []
        self.unmovable = ""
        """Why nothing can be moved."""
        self.entries: list[LogEntry] = []
        self.changed = asyncio.Event()
        self.followers = 0
        self.closing = False

    async def health(self):
        return Health(node=self.node_id, incarnation=1, leader=True, problems=self.reasons)

    async def ready(self):
        return self.reasons

    async def nodes(self):
        return [
            NodeView(
                id=self.node_id,
                address="http://127.0.0.1:8700",
                incarnation=1,
                live=True,
                leader=True,
                cpus=2,
                network=2500.0,
                bottleneck="cpu: 1.90 of 1.80 cores",
            )
        ]

    async def models(self):
        return [self.catalogue[name] for name in sorted(self.catalogue)]

    async def model(self, name):
        full = name if "/" in name else f"default/{name}"
        if full not in self.catalogue:
            raise NotFound(f"there is no model {full!r}", remedy="see `penstock model list`")
        return self.catalogue[full]

    async def receive(self, chunks):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "received.whl"
            with path.open("wb") as file:
                async for chunk in chunks:
                    self.largest = max(self.largest, len(chunk))
                    file.write(chunk)
            found = open_package(path)
        manifest = found.manifest
        schema = {name: msgspec.to_builtins(setting) for name, setting in manifest.config.items()}
        self.packages[found.digest] = PackageView(
            digest=found.digest, size=found.size, name=manifest.name, group=manifest.group, version=manifest.version,
            flow=manifest.flow, requires=list(manifest.requires), schema=schema,
        )  # fmt: skip
        return self.packages[found.digest]

    # ---- operations: all of `PARTICIPANTS` or none ----

    async def _perform(self, kind, model, ask, check, apply):
        self.asks.append(ask)
        earlier = self.keys.get(ask.key)
        if earlier is None:
            await check()
            if ask.dry_run:
                nodes = dict.fromkeys(PARTICIPANTS, "would do it")
                return Outcome(plan=ChangePlan(kind=kind, model=model, possible=True, changes=["this"], nodes=nodes))
            earlier = self._begin(kind, model, ask, apply)
        return await self._outcome(earlier, ask)

    def _begin(self, kind, model, ask, apply):
        now = time.time()
        operation = OperationView(
            id=f"op-{len(self.operations_)}", kind=kind, model=model, phase="preparing", user=ask.user,
            node=self.node_id, nodes=dict.fromkeys(PARTICIPANTS, "waiting"), started=now, deadline=now + 60,
        )  # fmt: skip
        self.operations_[operation.id] = operation
        if ask.key:
            self.keys[ask.key] = operation.id
        self.waiting[operation.id] = apply
        if self.refusals:
            self.abort(operation.id, "some nodes cannot do it", self.refusals)
        elif not self.slow:
            self.settle()
        return operation.id

    def settle(self):
        """All nodes do what is waiting."""
        for number, apply in self.waiting.items():
            operation = self.operations_[number]
            operation.phase, operation.settled = "finished", True
            operation.nodes = dict.fromkeys(PARTICIPANTS, "done")
            self.revision += 1
            apply()
        self.waiting.clear()

    def abort(self, id, reason, refusals=None):
        operation = self.operations_[id]
        operation.phase, operation.settled, operation.reason = "aborted", True, reason
        operation.nodes |= refusals or {}
        del self.waiting[id]

    async def _outcome(self, id, ask):
        operation = self.operations_[id]
        end = time.monotonic() + (20 if ask.wait is None else ask.wait)
        while not operation.settled and time.monotonic() < end:
            await asyncio.sleep(0.005)
        if operation.phase == "aborted":
            nodes = {node: said for node, said in operation.nodes.items() if said != "waiting"}
            raise RolledBack(
                f"{operation.kind} of {operation.model} was rolled back: {operation.reason}",
                remedy="nothing has changed", nodes=nodes, operation=id,
            )  # fmt: skip
        return Outcome(operation=operation, model=self.catalogue.get(operation.model) if operation.settled else None)

    async def add_model(self, digest, name=None, config=None, *, ask=ASK):
        package = self.packages[digest]
        name = name or package.name
        full = name if "/" in name else f"{package.group}/{name}"

        async def check():
            if package.name == "broken":
                raise FlowError("count", "a fold needs a key", remedy="put key_by before it")
            if full in self.catalogue:
                raise Conflict(f"{full!r} exists already")

        def apply():
            self.catalogue[full] = ModelView(name=full, desired="offline", status="offline", generation=0)
            self._change(full, package, config, ask)
            self.log_entry("model.added", "added", full, user=ask.user)

        return await self._perform("add", full, ask, check, apply)

    def _change(self, name, package, config, ask):
        model = self.catalogue[name]
        model.generation, model.user = self.revision, ask.user
        if package is not None:
            model.version, model.digest, model.schema = package.version, package.digest, package.schema
        if config is not None:
            model.config = config
        self.history.setdefault(name, []).insert(
            0,
            VersionView(
                generation=model.generation, version=model.version, digest=model.digest, config=model.config,
                user=ask.user, changed=time.time(),
            ),
        )  # fmt: skip

    async def _expect(self, name, status):
        if ((await self.model(name)).status == "online") != (status == "online"):
            raise Conflict(f"{name!r} is not {status}", remedy=f"bring it {status} first")

    async def update_model(self, name, digest=None, config=None, *, live=False, ask=ASK):
        async def check():
            if live:
                await self.model(name)
            else:
                await self._expect(name, "offline")

        def apply():
            self._change(name, self.packages[digest] if digest else None, config, ask)

        return await self._perform("update", name, ask, check, apply)

    async def rollback(self, name, to=None, *, live=False, ask=ASK):
        await self.model(name)
        versions = {version.generation: version for version in self.history[name][1:]}
        if not versions or (to is not None and to not in versions):
            raise Conflict(f"{name!r} has no such earlier version")
        version = versions[to or max(versions)]

        async def check():
            await self._expect(name, "offline")

        def apply():
            self._change(name, self.packages[version.digest], version.config, ask)

        return await self._perform("update", name, ask, check, apply)

    async def delete_model(self, name, *, ask=ASK):
        async def check():
            if (await self.model(name)).status == "online":
                raise Conflict(f"{name!r} is online", remedy="take it offline first")

        return await self._perform("delete", name, ask, check, lambda: self.catalogue.pop(name))

    async def online(self, name, config=None, executors=None, recovery=None, *, replication=None, ask=ASK):
        async def check():
            if (await self.model(name)).status == "online":
                raise Conflict(f"{name!r} is online already")

        def apply():
            model = self.catalogue[name]
            model.status = model.desired = "online"
            model.config = model.config if config is None else config
            model.recovery = recovery or model.recovery
            model.executors = [
                ExecutorView(
                    id=f"0.{i}", steps=("in", "count"), node=self.node_id, state="running", records_in=7, busy=0.5,
                    replicas=self._replicas(model.recovery, i), degraded=model.recovery != "none" and i == 1,
                )
                for i in range(executors or 1)
            ]  # fmt: skip
            model.latency = [0.001, 0.002, 0.003]
            model.counters = {"in.skipped": 2}
            if self.starting is not None:
                model.status, model.error = self.starting

        return await self._perform("online", name, ask, check, apply)

    def _replicas(self, recovery, index):
        if recovery == "none":
            return []
        return [
            ReplicaView(name=f"0.{index}@node-1/1.1", role="primary", node=self.node_id, state="running", pid=41),
            ReplicaView(
                name=f"0.{index}@node-2/1.1", role=recovery, node="node-2", state="running", pid=42, behind=3,
                kept_bytes=2048, protects=index != 1,
            ),
        ]  # fmt: skip

    async def split(self, name, what, *, user=""):
        model = await self.model(name)
        if model.recovery == "none":
            raise Conflict(f"{name!r} runs with recovery none", remedy="bring it online with --recovery passive")
        found = next((e for e in model.executors if e.id == what), None)
        if found is None:
            raise NotFound(f"{name!r} has no executor {what!r}")
        return SplitOrder(model=name, executor=what, groups=128)

    async def move(self, name, executor, node, *, user="", wait=None):
        model = await self.model(name)
        if model.recovery == "none":
            raise Conflict(f"{name!r} runs with recovery none", remedy="bring it online with --recovery passive")
        found = next((e for e in model.executors if e.id == executor), None)
        if found is None:
            raise NotFound(f"{name!r} has no executor {executor!r}")
        order = MoveOrder(model=name, executor=executor, source=found.node, target=node)
        if wait != 0:
            order.done, order.reason = node != "node-9", "" if node != "node-9" else "it was given up"
        return order

    async def offline(self, name, *, ask=ASK):
        def apply():
            model = self.catalogue[name]
            model.status = model.desired = "offline"
            model.executors = []

        async def check():
            await self._expect(name, "online")

        return await self._perform("offline", name, ask, check, apply)

    async def versions(self, name):
        await self.model(name)
        for i, version in enumerate(self.history[name]):
            version.current = i == 0
        return self.history[name]

    async def operations(self):
        return list(reversed(self.operations_.values()))

    async def operation(self, id):
        if id not in self.operations_:
            raise NotFound(f"there is no operation {id!r}")
        return self.operations_[id]

    async def cancel_operation(self, id, user=""):
        operation = await self.operation(id)
        if operation.phase not in ("preparing", "aborted"):
            raise Conflict(f"{id} is decided already")
        if operation.phase == "preparing":
            self.abort(id, f"cancelled by {user}")
        return operation

    async def addresses(self, model, source):
        await self._step(model, source, "in")
        lanes = [
            LaneView(lane=number, executor=f"0.{number}", node=node, url=self.urls.get(node, ""))
            for number, node in enumerate(self.lanes)
        ]
        return Addresses(
            model=model, source=source, cluster=self.name, revision=self.revision, lanes=lanes, nodes=self.urls
        )

    async def push(self, model, source, records, client=None, seq=None, lane=ANY_LANE):
        await self._step(model, source, "in")
        if lane.cluster not in ("", self.name):
            raise Misdirected("of another cluster")
        number = (lane.number or 0) % len(self.lanes)
        if client is not None and (number, client, seq) in self.seen:
            return Pushed(len(records))
        if len(self.records) + len(records) > self.room:
            return NoRoom(0.05)
        self.seen.add((number, client, seq))
        self.pushes.append((number, client, seq, len(records)))
        self.records += records
        for record in records:
            self.state[record] = self.state.get(record, 0) + 1
        return Pushed(len(records))

    async def _step(self, model, step, expected):
        found = await self.model(model)
        if step != expected:
            raise NotFound(f"model {model!r} has no step {step!r}")
        if found.status != "online":
            raise Conflict(f"{model!r} is offline")

    async def lookup(self, model, step, key):
        await self._step(model, step, "count")
        return Found(True, self.state[key]) if key in self.state else Found(False)

    async def listing(self, model, step, limit=100, cursor=None):
        await self._step(model, step, "count")
        items = sorted(
            ((k, v) for k, v in self.state.items() if cursor is None or str(k) > cursor), key=lambda i: str(i[0])
        )
        more = len(items) > limit
        return Page(items[:limit], str(items[limit - 1][0]) if more else None)

    async def results(self, model, step=None, limit=100):
        await self.model(model)
        return self.records[-limit:]

    async def placement(self, model):
        view = await self.model(model)
        assignment = {executor.id: executor.node for executor in view.executors}
        load = {self.node_id: len(assignment)}
        return PlacementView(
            model=view.name, strategy="even", epoch="1.1", assignment=assignment, load=load, cut=0.25,
            channels=self.channels(),
            now=SituationView(cut=0.5, records=10.0, bytes=1000.0, latency=0.0021, load={self.node_id: 0.5}),
            heaviest=[
                EdgeView(
                    producer="0.0", consumer="1.0", source="node-1", target="node-2", records=12.0, bytes=3400.0,
                    remote=True,
                )
            ],
            standbys={"0.0": ["node-2"]},
            stays={"0.0": "it does not run yet"},
        )  # fmt: skip

    async def rebalance(self, *, dry_run=False, strategy=None, model=None):
        if strategy == "best":
            raise UsageError("there is no placement strategy 'best'", remedy="the strategies are: adaptive, even")
        if model is not None:
            await self.model(model)
        if self.unmovable and not dry_run:
            raise Conflict(self.unmovable)
        load = {"node-1": 0.5, "node-2": 0.25}
        before = SituationView(cut=0.38, records=10.0, bytes=1000.0, latency=0.0021, load=load)
        after = SituationView(cut=0.31, records=8.0, bytes=800.0, latency=0.00185, load=load)
        move = MoveView(model="default/words", executor="1.0", source="node-1", target="node-2", state=12_000_000)
        if dry_run:
            move.obstacle = "it has no standby"
        verdict = ModelVerdict(
            model="default/words", apply=True, reason="cut 38% -> 31%", moves=1, cut_before=0.38, cut_after=0.31
        )
        return RebalanceView(
            strategy=strategy or "adaptive", dry_run=dry_run, apply=bool(self.catalogue), reason="cut 38% -> 31%",
            before=before, after=after, moves=[move] if self.catalogue else [], models=[verdict],
            blocked=["node node-1 uses 3 of 2 cpu"],
        )  # fmt: skip

    def channels(self):
        return [ChannelView(edge=0, producer="0.0", consumer="1.0", records=12, bytes=3400)]

    async def metrics(self):
        models = await self.models()
        return MetricsView(
            nodes=await self.nodes(), models=models, channels={model.name: self.channels() for model in models}
        )

    def log_entry(self, kind, text, model="", user=""):
        number = len(self.entries) + 1
        self.entries.append(
            LogEntry(
                id=f"{number:03}", time=1.7e9 + number, kind=kind, text=text, node="node-1", model=model, user=user
            )
        )
        self.changed.set()
        self.changed = asyncio.Event()

    def close(self):
        self.closing = True
        self.changed.set()

    async def log(self, model=None, limit=100, after=None):
        entries = [e for e in self.entries if model is None or e.model == model]
        if after is None:
            return entries[-limit:]
        return [e for e in entries if e.id > after][:limit]

    async def follow(self, model=None, after=None):
        last = after or (self.entries[-1].id if self.entries else "")
        self.followers += 1
        try:
            while not self.closing:
                changed = self.changed
                for entry in await self.log(model, 1000, last):
                    last = entry.id
                    yield entry
                if not self.closing:
                    await changed.wait()
        finally:
            self.followers -= 1

    async def logs(self, model, limit=100, after=None):
        await self.model(model)
        return [entry for entry in await self.log(model, 10_000, after or "0") if entry.kind == "model.log"][-limit:]

    async def follow_logs(self, model, after=None):
        entries = self.follow(model, after)
        try:
            async for entry in entries:
                if entry.kind == "model.log":
                    yield entry
        finally:
            await entries.aclose()

    async def internal(self, token, body):
        if token != "cluster-secret":
            raise PermissionError
        return body[::-1]
