"""A model with checkpoints as the leader sees it, Redis and nodes in memory, a real store: for tests of the keeper."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import msgspec

from penstock.clock import SystemClock
from penstock.cluster.bus import BusDown
from penstock.cluster.checkpoint_places import Places
from penstock.cluster.checkpoint_record import CheckpointRecord
from penstock.cluster.checkpoint_scripts import NotLeading
from penstock.cluster.checkpointing import Keeper, Means
from penstock.cluster.plan import Assigned, ModelEntry, ModelState, Plan, RunEntry
from penstock.cluster.routing import Answer, AskCheckpoint, AskCommitted
from penstock.cluster.service import Unavailable
from penstock.cluster.view import View
from penstock.flow.builder import Flow
from penstock.settings import RunSettings
from penstock.worker.messages import Epoch
from penstock.worker.store import CheckpointStore

NAME, FLOW, GENERATION = "default/counts", "counts", 5
LINEAGE = ("founded",)


def topology():
    import penstock as ps

    flow = Flow(FLOW)
    keyed = flow.source("numbers", ps.sequence(10)).key_by("digit", lambda n: n % 10)
    keyed.count("count").sink("out", ps.collect())
    return flow.build().topology


TOPOLOGY = topology()


def plan(revision=1, nodes=("a", "b"), epoch=1):
    executors = {
        f"{stage}.0": Assigned(node=node, incarnation=1, epoch=Epoch(1, epoch)) for stage, node in enumerate(nodes)
    }
    return Plan(
        model=NAME, number=GENERATION, generation=GENERATION, revision=revision, digest="d", config={},
        counts={0: 1, 1: 1}, executors=executors,
    )  # fmt: skip


def state(planned, *, states="running", connected=None, recovery="passive", record=None, desired="online"):
    run = {}
    if planned is not None:
        run = {
            name: RunEntry(epoch=seat.epoch, node=seat.node, incarnation=1, state=states)
            for name, seat in planned.executors.items()
        }
        connected = dict.fromkeys(planned.nodes(), planned.revision) if connected is None else connected
    return ModelState(
        entry=ModelEntry(
            name=NAME, desired=desired, generation=GENERATION, digest="d", recovery=recovery, topology=TOPOLOGY
        ),
        plan=planned,
        run=run,
        connected=connected or {},
        durable=record,
        checkpoint=None if record is None else record.number or None,
        plan_sha="" if planned is None else f"sha of {planned.revision}",
    )


class Redis:
    """What the scripts do, for one model."""

    def __init__(self):
        self.term, self.generation, self.sha = 3, GENERATION, ""
        self.used, self.record = 0, None
        self.away = False
        self.notes, self.corrected = [], []
        self.before_complete = lambda: None

    def _check(self, term):
        if self.away:
            raise BusDown("Redis is away")
        if term != self.term:
            raise NotLeading

    def _same(self, generation, sha):
        return generation == self.generation and sha in ("", self.sha)

    async def begin(self, term, model, generation, sha, used):
        self._check(term)
        if not self._same(generation, sha):
            return None
        self.used = max(self.used, used) + 1
        return self.used

    async def unchanged(self, term, model, generation, sha):
        self._check(term)
        return self._same(generation, sha)

    async def complete(self, term, model, sha, record):
        self.before_complete()
        self._check(term)
        if not self._same(record.generation, sha):
            return False
        self.record = record
        return True

    async def note(self, term, model, record):
        self._check(term)
        self.notes.append(record)
        self.record = record
        return True

    async def correct(self, term, model, record):
        self.corrected.append(record.number)
        return await self.note(term, model, record)

    async def forget(self, term, models):
        self._check(term)
        if NAME in models:
            self.record = None


class Nodes:
    """Answers for all nodes: each writes the parts of its executors into the store."""

    def __init__(self, scene):
        self.scene = scene
        self.asked: list[tuple[str, int]] = []
        self.told: list[tuple[str, int]] = []
        self.silent: set[str] = set()
        self.failing: dict[str, str] = {}
        self.used = 0
        self.lying: set[str] = set()
        """Nodes whose parts are elsewhere than they say."""

    async def ask(self, view, node, question):
        if isinstance(question, AskCommitted):
            if node in self.silent:
                raise Unavailable(f"node {node} does not answer")
            self.told.append((node, question.number))
            return Answer(True)
        assert isinstance(question, AskCheckpoint)
        self.asked.append((node, question.number))
        if node in self.silent:
            await asyncio.Event().wait()
        if node in self.failing:
            raise Unavailable(self.failing[node])
        if question.number <= self.used:
            return Answer(False, self.used, f"checkpoint number {question.number} was used before")
        parts = {}
        for name, seat in self.scene.plan.executors.items():
            if seat.node == node:
                data = f"{name} at {question.number}".encode()
                size = len(data) + 12 if node in self.lying else self.scene.store().write_part(
                    question.number, name, data
                )  # fmt: skip
                parts[name] = [size, 0.001]
        return Answer(True, parts)


class Events:
    def __init__(self):
        self.said = []

    def say(self, kind, text, *, model="", level="info", stream=""):
        self.said.append((kind, text))

    def kinds(self):
        return [kind for kind, _ in self.said]


class Scene:
    """One model, its keeper, and everything around."""

    def __init__(self, root, **run):
        self.redis, self.events, self.nodes = Redis(), Events(), Nodes(self)
        self.term = 3
        self.places = Places(str(root), "cluster")
        settings = RunSettings(**{"checkpoint_interval": 0.01, "checkpoint_timeout": 5.0, **run})
        self.keeper = Keeper(
            Means(self.redis, self.events, self.nodes, settings, 5.0, lambda: self.term, SystemClock()), self.places
        )
        self.plan = plan()
        self.times = itertools.count(1000)

    def store(self, generation=GENERATION):
        return CheckpointStore(self.places.url(LINEAGE, NAME, generation), FLOW)

    def view(self, *states, revision=GENERATION, **more):
        return View(
            lineage=LINEAGE, revision=revision, now=next(self.times), leader="a", term=3, members={},
            models={one.entry.name: one for one in states}, **more,
        )  # fmt: skip

    def look(self, planned=None, *, term=None, **more):
        """The leader sees the model with a plan, by which everything runs."""
        if planned is not None:
            self.plan = planned
        seen = state(self.plan, **{"record": self.redis.record, **more})
        self.redis.sha = seen.plan_sha
        view = self.view(seen)
        self.keeper.look(view, self.term if term is None else term)
        return view

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.keeper.close()

    def folders(self):
        """The names in the folder of the present generation."""
        return sorted(path.name for path in self._folder().glob("chk-*"))

    def manifests(self):
        """The numbers of complete checkpoints in the store."""
        return sorted(int(path.parent.name[4:]) for path in self._folder().glob("chk-*/manifest.json"))

    def _folder(self):
        return Path(self.places.url(LINEAGE, NAME, GENERATION), FLOW)

    def damage(self, number, text="{"):
        """Put something else into a manifest; what was in it."""
        path = self._folder() / f"chk-{number:08d}" / "manifest.json"
        before = path.read_text()
        path.write_text(text)
        return before

    def complete(self, number):
        """Whether a checkpoint of this number or a later one is on record."""
        return self.redis.record is not None and self.redis.record.number >= number


def record(number, **more):
    return msgspec.structs.replace(CheckpointRecord(generation=GENERATION, number=number), **more)
