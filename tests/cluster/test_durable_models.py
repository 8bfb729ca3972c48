"""Durable checkpoints of online models, from the sources to the files that their sinks show: real nodes and workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
from collections import Counter

import pytest
from tests.cluster.catalogue_in_redis import connected, empty
from tests.cluster.models import add, offline, settled
from tests.cluster.nodes import Cluster, asynchronous, until

from penstock.cluster.service import RolledBack
from penstock.errors import UsageError

FLOW = """
import penstock as ps

flow = ps.Flow("counts")
(
    flow.source("numbers", ps.sequence({numbers}, rate={rate}, shards=2))
    .key_by("digit", lambda n: n % 10)
    .count("count")
    .sink("out", {sink})
)
"""
NAME = "default/counts"
PATIENT = {"lease": 4.0, "leader_lease": 4.0}
"""Leases that a busy machine can keep."""


class Durable:
    """A cluster with a store, and the model."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder
        self.agents = {} if cluster is None else cluster.agents

    @property
    def agent(self):
        return next(iter(self.agents.values()))

    @property
    def leader(self):
        return next(agent for agent in self.agents.values() if agent._election.term)

    async def run(self, numbers, rate, recovery="passive", executors=None, name="counts", sink=None):
        """Bring the model online."""
        source = self.folder / "counts.py"
        sink = sink or f"ps.ndjson({f'{self.folder}/out/'!r})"
        source.write_text(FLOW.format(numbers=numbers, rate=rate, sink=sink))
        await add(self.agent, source, name)
        return settled(await self.agent.online(name, None, executors, recovery))

    async def view(self):
        return await self.agent.model("counts")

    async def checkpointed(self, least=1):
        """The model, once a checkpoint of this number or a later one is complete."""

        async def there():
            view = await self.view()
            return view if view.checkpoint is not None and view.checkpoint.number >= least else None

        return await until(there)

    async def has(self, status, name="counts"):
        async def there():
            view = await self.agent.model(name)
            assert status == "failed" or view.status != "failed", view.error
            return view if view.status == status else None

        return await until(there, 60)

    def shown(self):
        """What the sink shows: (key, value) of every record in a visible file."""
        lines = [line for path in self._parts() for line in path.read_text().splitlines()]
        return [(record["key"], record["value"]) for record in map(json.loads, lines)]

    def _parts(self):
        return sorted((self.folder / "out").glob("part-*"))

    def stored(self):
        """The folders of generations in the store."""
        return sorted((self.folder / "checkpoints").glob("*/*/default/counts/*"))

    def damage(self):
        """Put files where the folders for parts are, so that nobody can write."""
        for path in (self.folder / "checkpoints").rglob("counts/*/counts"):
            path.rename(path.with_name("away"))
            path.write_text("")

    def mend(self):
        for path in (self.folder / "checkpoints").rglob("counts/*/away"):
            path.with_name("counts").unlink()
            path.rename(path.with_name("counts"))

    def kill_workers(self):
        for agent in self.agents.values():
            for pid in agent._runner.workers.pids():
                os.kill(pid, signal.SIGKILL)

    async def tell(self):
        """Everything, for whoever looks for the reason of a failure."""
        for entry in await self.agent.log(limit=300):
            print(round(entry.time, 2), entry.node, entry.kind, entry.text)
        for model in await self.agent.models():
            print(model.name, model.status, model.error, model.checkpoint)
            print(*((e.id, e.node, e.state, e.records_in, e.restarts) for e in model.executors))

    async def events(self, kind):
        return [entry.text for entry in await self.agent.log(limit=300) if entry.kind == kind]


@contextlib.asynccontextmanager
async def durable(url, prefix, folder, nodes=("a", "b"), **more):
    changes = {"checkpoints": str(folder / "checkpoints"), **PATIENT, **more}
    async with Cluster(url, prefix, **changes) as cluster:
        await cluster.add(*nodes)
        scene = Durable(cluster, folder)
        try:
            yield scene
        except AssertionError:
            await scene.tell()
            raise


async def ready(agent):
    return not await agent.ready()


def exact(numbers):
    """What the sink has to show: each running count of each digit, once."""
    return Counter((digit, count + 1) for digit in range(10) for count in range(numbers // 10))


def gapless(shown):
    """Whether every key's counts are there from 1 on, each once."""
    most = Counter(key for key, _ in shown)
    return Counter(shown) == Counter((key, value + 1) for key, count in most.items() for value in range(count))


@asynchronous
async def test_files_appear_with_checkpoints_and_are_exact_at_the_end(valkey, prefix, tmp_path):
    async with durable(valkey, prefix, tmp_path) as scene:
        await scene.run(3000, 1000)
        await scene.checkpointed(2)
        assert 0 < len(scene.shown()) < 3000
        await scene.has("finished")
        await until(lambda: len(scene.shown()) == 3000)
        assert Counter(scene.shown()) == exact(3000)
        view = await scene.view()
        assert (view.checkpoint.failed, view.checkpoint.error) == (0, "")
        assert view.checkpoint.bytes > 0
        assert len(scene.stored()) == 1
        await offline(scene.agent, "counts")
        await until(lambda: not scene.stored())
        assert (await scene.view()).checkpoint is None
        await until(lambda: not scene.agent._view.checkpoints)
        assert Counter(scene.shown()) == exact(3000)


@asynchronous
async def test_when_all_workers_die_everything_is_restored(valkey, prefix, tmp_path):
    async with durable(valkey, prefix, tmp_path) as scene:
        await scene.run(6000, 1500, executors=2)
        before = (await scene.checkpointed(2)).checkpoint.number
        scene.kill_workers()
        await until(lambda: scene.events("model.restored"))
        restored = (await scene.events("model.restored"))[0]
        number = int(restored.partition("from checkpoint ")[2].partition(":")[0])
        assert number >= before
        await scene.has("finished")
        await until(lambda: len(scene.shown()) == 6000)
        assert Counter(scene.shown()) == exact(6000)
        assert (await scene.view()).checkpoint.number > number


@asynchronous
@pytest.mark.parametrize("forgetful", [False, True])
async def test_a_cluster_that_is_started_again_goes_on_from_the_last_checkpoint(valkey, prefix, tmp_path, forgetful):
    """`forgetful`: with a Redis that knows nothing."""
    async with durable(valkey, prefix, tmp_path, ()) as scene:
        for name in ("a", "b"):
            await scene.cluster.add(name, data_dir=tmp_path / name)
        await scene.run(6000, 1000)
        number = (await scene.checkpointed(2)).checkpoint.number
        folder = scene.stored()[0]
        for name in ("a", "b"):
            await scene.cluster.remove(name)
    if forgetful:
        async with connected(valkey, prefix) as bus:
            await empty(bus)
    async with durable(valkey, prefix, tmp_path, ()) as scene:
        agents = [scene.cluster.make(name, data_dir=tmp_path / name) for name in ("a", "b")]
        async with contextlib.AsyncExitStack() as stack:
            scene.agents.update({agent.node_id: agent for agent in agents})
            await asyncio.gather(*(stack.enter_async_context(agent) for agent in agents))
            for agent in agents:
                await until(lambda agent=agent: ready(agent))
            await scene.has("finished")
            await until(lambda: len(scene.shown()) == 6000)
            assert Counter(scene.shown()) == exact(6000)
            assert scene.stored() == [folder]
            view = await scene.view()
            assert view.checkpoint.number > number
            assert scene.agent._view.models[NAME].plan.restore >= number


@asynchronous
async def test_two_models_of_one_flow_write_rows_once_each_also_when_they_are_restored(valkey, prefix, tmp_path):
    database = tmp_path / "results.db"
    async with durable(valkey, prefix, tmp_path) as scene:
        sink = f"ps.sql('sqlite:///{database}', 'results')"
        for name in ("one", "two"):
            await scene.run(3000, 500, name=name, sink=sink)
        await until(lambda: (scene.agent._view.models["default/two"].checkpoint or 0) >= 2)
        scene.kill_workers()
        for name in ("one", "two"):
            await scene.has("finished", name)

        def rows():
            with contextlib.closing(sqlite3.connect(database)) as connection:
                return Counter(connection.execute("select key, value from results"))

        await until(lambda: sum(rows().values()) >= 6000)
        assert rows() == exact(3000) + exact(3000)
        restored = " ".join(await scene.events("model.restored"))
        assert "default/one" in restored
        assert "default/two" in restored


@asynchronous
async def test_without_the_store_nothing_is_restored_and_nothing_starts_empty(valkey, prefix, tmp_path):
    async with durable(valkey, prefix, tmp_path) as scene:
        await scene.run(10**6, 500)
        await scene.checkpointed()
        shutil.rmtree(tmp_path / "checkpoints")
        scene.kill_workers()
        view = await scene.has("failed")
        assert "no durable checkpoint" in view.error
        assert "offline" in view.error


@asynchronous
async def test_a_store_that_cannot_be_written_holds_up_what_is_shown_and_nothing_else(valkey, prefix, tmp_path):
    async with durable(valkey, prefix, tmp_path) as scene:
        await scene.run(10**6, 1000)
        await scene.checkpointed()
        scene.damage()

        async def failing():
            view = await scene.view()
            return view if view.checkpoint.in_a_row >= 2 else None

        view = await until(failing)
        assert "cannot be" in view.checkpoint.error
        assert view.status in ("online", "degraded")
        read, shown = view.records_in, len(scene.shown())

        async def went_on():
            return (await scene.view()).records_in > read

        await until(went_on)
        assert len(scene.shown()) == shown
        assert len(await scene.events("checkpoint.failed")) < view.checkpoint.failed + 2
        scene.mend()
        await until(lambda: scene.events("checkpoint.resumed"))
        await until(lambda: len(scene.shown()) > shown)
        assert gapless(scene.shown())


@asynchronous
async def test_checkpoints_go_on_with_another_leader_and_when_redis_has_lost_its_memory(valkey, prefix, tmp_path):
    async with durable(valkey, prefix, tmp_path, ("a", "b", "c")) as scene:
        await scene.run(10**6, 500)
        first = (await scene.checkpointed(2)).checkpoint.number
        leader = next(name for name, agent in scene.agents.items() if agent is scene.leader)
        await scene.cluster.remove(leader)
        second = (await scene.checkpointed(first + 2)).checkpoint.number
        bus = scene.agent._bus
        for key in await bus.command("KEYS", bus.key("checkpoint") + "*"):
            await bus.command("DEL", key)
        view = await scene.checkpointed(second + 2)
        assert view.status in ("online", "degraded")
        folders = [path.name for path in scene.stored()[0].glob("counts/chk-*")]
        assert len(folders) == len(set(folders))
        assert gapless(scene.shown())


@asynchronous
async def test_replicas_need_a_store(valkey, prefix, tmp_path):
    async with durable(valkey, prefix, tmp_path, checkpoints=None) as scene:
        with pytest.raises(UsageError, match=r"recovery 'active' needs durable checkpoints(?s:.*)--checkpoints URL"):
            await scene.run(100, 100, "active")
        assert (await scene.view()).status == "offline"


@asynchronous
async def test_every_node_needs_the_same_store(valkey, prefix, tmp_path):
    async with durable(valkey, prefix, tmp_path, ("a",)) as scene:
        other = scene.cluster.settings
        from msgspec.structs import replace

        await scene.cluster.add("b", settings=replace(other, checkpoints=str(tmp_path / "elsewhere")))
        with pytest.raises(RolledBack) as caught:
            await scene.run(100, 100)
        assert "is another one than that of node a" in caught.value.nodes["b"]
        await scene.cluster.remove("b")
        await scene.cluster.add("c", settings=replace(other, checkpoints=None))
        await until(lambda: "b" not in scene.agent._view.members)
        with pytest.raises(RolledBack) as caught:
            await scene.agent.online("counts", None, None, "passive")
        assert "it has no store for durable checkpoints" in caught.value.nodes["c"]
