"""A node service in memory: enough of a cluster to test what stands in front of it."""

from __future__ import annotations

import asyncio

from penstock.cluster.service import (
    ChannelView,
    Conflict,
    ExecutorView,
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
)
from penstock.errors import FlowError


class FakeService:
    """One node, models in a dictionary, records in a list, a counter of the records' `word` as state."""

    node_id = "node-1"

    def __init__(self, room: int = 1000) -> None:
        self.room = room
        self.catalogue: dict[str, ModelView] = {}
        self.records: list = []
        self.seen: set[tuple[str | None, int | None]] = set()
        self.state: dict = {}
        self.reasons: list[str] = []
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
            NodeView(id=self.node_id, address="http://127.0.0.1:8700", incarnation=1, live=True, leader=True, cpus=2)
        ]

    async def models(self):
        return [self.catalogue[name] for name in sorted(self.catalogue)]

    async def model(self, name):
        full = name if "/" in name else f"default/{name}"
        if full not in self.catalogue:
            raise NotFound(f"there is no model {full!r}", remedy="see `penstock model list`")
        return self.catalogue[full]

    async def add_model(self, path, name=None):
        if path.endswith("broken.py"):
            raise FlowError("count", "a fold needs a key", remedy="put key_by before it")
        full = f"default/{name or 'words'}"
        if full in self.catalogue:
            raise Conflict(f"{full!r} exists already")
        self.catalogue[full] = ModelView(name=full, path=path, desired="offline", status="offline", generation=1)
        self.log_entry("model.added", "added", full)
        return self.catalogue[full]

    async def delete_model(self, name):
        if (await self.model(name)).status == "online":
            raise Conflict(f"{name!r} is online", remedy="take it offline first")
        del self.catalogue[name]

    async def online(self, name, config=None, executors=None):
        model = await self.model(name)
        if model.status == "online":
            raise Conflict(f"{name!r} is online already")
        model.status = model.desired = "online"
        model.config = config or {}
        count = executors or 1
        model.executors = [
            ExecutorView(id=f"0.{i}", steps=("in", "count"), node=self.node_id, records_in=7, busy=0.5)
            for i in range(count)
        ]
        model.latency = [0.001, 0.002, 0.003]
        model.counters = {"in.skipped": 2}
        return model

    async def offline(self, name):
        model = await self.model(name)
        if model.status != "online":
            raise Conflict(f"{name!r} is offline")
        model.status = model.desired = "offline"
        model.executors = []
        return model

    async def push(self, model, source, records, client=None, seq=None):
        await self._step(model, source, "in")
        if client is not None and (client, seq) in self.seen:
            return Pushed(0)
        if len(self.records) + len(records) > self.room:
            return NoRoom(0.05)
        self.seen.add((client, seq))
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
        )  # fmt: skip

    def channels(self):
        return [ChannelView(edge=0, producer="0.0", consumer="1.0", records=12, bytes=3400)]

    async def metrics(self):
        models = await self.models()
        return MetricsView(
            nodes=await self.nodes(), models=models, channels={model.name: self.channels() for model in models}
        )

    def log_entry(self, kind, text, model=""):
        number = len(self.entries) + 1
        self.entries.append(
            LogEntry(id=f"{number:03}", time=1.7e9 + number, kind=kind, text=text, node="node-1", model=model)
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

    async def internal(self, token, body):
        if token != "cluster-secret":
            raise PermissionError
        return body[::-1]
