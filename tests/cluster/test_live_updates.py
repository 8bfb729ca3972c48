"""Live updates of models on real nodes and workers while records come: exact before, during and after."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections import defaultdict

import pytest
from tests.cluster.catalogue_in_redis import empty
from tests.cluster.models import add, offline, settled, update, upload
from tests.cluster.nodes import asynchronous, until
from tests.cluster.test_durable_models import NAME, Durable, durable

from penstock.cluster import upgrading
from penstock.cluster.checkpoint_parts import Parts
from penstock.cluster.service import Conflict, Unavailable
from penstock.errors import ClusterError, UsageError

HEAD = """
# /// script
# [tool.penstock]
# name = "counts"
# version = "{version}"
#
# [tool.penstock.config]
# mark = "{version}"
# ///
import os
import penstock as ps

flow = ps.Flow("counts")
numbers = flow.source("numbers", ps.sequence(1_000_000, rate=300, shards=2))
out = ps.ndjson({out!r})
"""
ONE = """
def count(n, number):
    return n + 1, [ps.config["mark"], n + 1]

numbers.key_by("digit", lambda n: n % 10).fold("count", 0, count).sink("out", out)
"""
TWO = """
def migrate(from_version, state):
    assert from_version == "1", from_version
    return {"counted": {key: {"n": n} for key, n in state["count"].items()}}

def count(state, number):
    if number > 0 and os.path.exists(FLAG):
        raise KeyError("the new version does not like it")
    return {"n": state["n"] + 1}, [ps.config["mark"], state["n"] + 1]

numbers.key_by("digit", lambda n: n % 10).fold("counted", lambda: {"n": 0}, count).sink("out", out)
"""
BAD_MIGRATION = TWO.replace('{"n": n}', 'n["?"]')
BAD_STEP = TWO.replace("os.path.exists(FLAG)", "True")
LEAVES = TWO.replace('raise KeyError("the new version does not like it")', "os._exit(7)").replace(
    "os.path.exists(FLAG)", "True"
)
UNKEYED = """
numbers.map("plain", lambda n: ["2", n]).sink("out", out)
"""


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Times that tests can wait for."""
    monkeypatch.setattr(upgrading, "SHADOW", 0.5)
    monkeypatch.setattr(upgrading, "TRIAL", 1.0)
    monkeypatch.setattr(upgrading, "_PAUSE", 0.1)


class Updated(Durable):
    """A model that is updated while it runs."""

    def __init__(self, cluster, folder):
        super().__init__(cluster, folder)
        self._read = {}

    @property
    def flag(self):
        return self.folder / "flag"

    def source(self, version, text):
        path = self.folder / f"counts{version}.py"
        head = HEAD.format(version=version, out=f"{self.folder}/out/")
        path.write_text(f"{head}\nFLAG = {str(self.flag)!r}\n{text}")
        return path

    def shown(self):
        """See `Durable`; what a visible file has never changes."""
        found = []
        for path in self._parts():
            if path not in self._read:
                lines = map(json.loads, path.read_text().splitlines())
                self._read[path] = [(record["key"], record["value"]) for record in lines]
            found += self._read[path]
        return found

    async def begin(self, recovery="passive", executors=2):
        await add(self.agent, self.source("1", ONE))
        model = settled(await self.agent.online("counts", None, executors, recovery))
        await self.checkpointed(1)
        return model

    async def update(self, text=TWO, version="2", **config):
        return await update(self.agent, "counts", self.source(version, text), config or None, live=True)

    async def marked(self, mark):
        """Records of this version are shown, and everything that is shown is right."""
        await until(lambda: any(value[0] == mark for _, value in self.shown()))
        self.exact()

    def exact(self, *marks):
        """Every key's outputs are 1, 2, 3 …, and of these versions one after the other."""
        seen = defaultdict(dict)
        for key, (mark, number) in self.shown():
            assert number not in seen[key], f"{number} of key {key} came twice"
            seen[key][number] = mark
        for key, of in seen.items():
            assert sorted(of) == list(range(1, len(of) + 1)), f"key {key} has gaps"
            order = [of[number] for number in sorted(of)]
            changes = [mark for place, mark in enumerate(order) if not place or order[place - 1] != mark]
            assert len(changes) == len(set(changes)), changes
            if marks:
                assert changes == list(marks), changes
        return len(self.shown())

    async def more(self, mark):
        """There are new outputs, of this version."""

        def last():
            shown = self.shown()
            return max((value[1] for _, value in shown if value[0] == mark), default=0)

        before = max((value[1] for _, value in self.shown()), default=0)
        await until(lambda: last() > before)

    async def catalogue(self, version):
        async def there():
            return (await self.view()).version == version

        await until(there)

    async def said(self, kind):
        async def there():
            return await self.events(kind)

        return await until(there)

    async def tell(self):
        """See `Durable`."""
        await super().tell()
        for name, agent in self.agents.items():
            state = agent._view.models[NAME]
            revision = None if state.plan is None else state.plan.revision
            print(name, revision, state.connected, {seat: entry.state for seat, entry in state.run.items()})
            print(*agent._runner._hosts.values(), sep="\n")

    @property
    def plan(self):
        return self.agent._view.models[NAME].plan


@contextlib.asynccontextmanager
async def updated(valkey, prefix, folder, nodes=("a", "b"), **more):
    patient = {"lease": 8.0, "leader_lease": 8.0, "silence": 4.0, **more}
    async with durable(valkey, prefix, folder, nodes, **patient) as scene:
        scene = Updated(scene.cluster, folder)
        try:
            yield scene
        except BaseException:
            await scene.tell()
            raise


@pytest.mark.parametrize("recovery", ["passive", "active"])
@asynchronous
async def test_a_version_takes_over_with_its_state_migrated_and_nothing_lost_or_doubled(
    valkey, prefix, tmp_path, recovery
):
    async with updated(valkey, prefix, tmp_path, ("a", "b", "c")) as scene:
        before = await scene.begin(recovery)
        after = await scene.update()
        assert after.version == "2"
        await scene.has("online")  # the new executors have got their standbys
        assert {e.id for e in after.executors} == {e.id for e in before.executors}
        assert (after.promotions, after.restores, after.restarts) == (0, 0, 0)
        await scene.marked("2")
        scene.exact("1", "2")
        await scene.more("2")
        assert len(await scene.events("executor.updated")) == 4
        assert len(await scene.events("executor.promoted")) == 4
        assert [v.version for v in scene.agent._operations.versions("counts")] == ["2", "1"]
        await offline(scene.agent, "counts")
        scene.exact("1", "2")


@asynchronous
async def test_another_configuration_takes_over_without_a_migration(valkey, prefix, tmp_path):
    async with updated(valkey, prefix, tmp_path) as scene:
        await add(scene.agent, scene.source("1", TWO))
        settled(await scene.agent.online("counts", None, 1, "passive"))
        await scene.checkpointed(1)
        after = await update(scene.agent, "counts", None, {"mark": "other"}, live=True)
        assert after.config["mark"] == "other"
        await scene.marked("other")
        scene.exact("1", "other")


@pytest.mark.parametrize("text", [BAD_MIGRATION, BAD_STEP, LEAVES], ids=["migration", "step", "process"])
@asynchronous
async def test_a_version_that_fails_beside_the_other_changes_nothing(valkey, prefix, tmp_path, text):
    async with updated(valkey, prefix, tmp_path) as scene:
        before = await scene.begin()
        with pytest.raises(ClusterError, match=r"goes on as it was: the new version failed") as caught:
            await scene.update(text)
        assert {BAD_MIGRATION: "migrate('1', state)", BAD_STEP: "does not like it", LEAVES: "4 times"}[
            text
        ] in caught.value.message
        await scene.catalogue("1")
        await until(lambda: [v.version for v in scene.agent._operations.versions("counts")] == ["1"], 30)
        now = await scene.view()
        assert {e.id: (e.node, e.pid) for e in now.executors} == {e.id: (e.node, e.pid) for e in before.executors}
        assert (now.promotions, now.restores, now.restarts) == (0, 0, 0)
        await scene.more("1")
        scene.exact("1")
        await scene.update(version="3")
        await scene.marked("3")
        scene.exact("1", "3")


@asynchronous
async def test_a_version_that_fails_when_it_has_taken_over_brings_the_old_one_back(valkey, prefix, tmp_path):
    async with updated(valkey, prefix, tmp_path) as scene:
        await scene.begin()
        task = asyncio.create_task(scene.update())
        await until(lambda: scene.plan.upgrade is not None and scene.plan.upgrade.done)
        scene.flag.write_text("")
        with pytest.raises(ClusterError, match="does not like it"):
            await task
        await scene.catalogue("1")
        now = await scene.has("online")
        assert now.restores == 1
        await scene.more("1")
        scene.exact("1")
        assert "failed when it had taken over" in (await scene.events("model.update_failed"))[0]
        scene.flag.unlink()
        await scene.update(version="4")
        await scene.marked("4")
        scene.exact("1", "4")


@asynchronous
async def test_what_cannot_be_updated_live_is_refused_with_the_reason(valkey, prefix, tmp_path):
    async with updated(valkey, prefix, tmp_path) as scene:
        one, two = scene.source("1", ONE), scene.source("2", TWO)
        await add(scene.agent, one)
        digest = await upload(scene.agent, two)
        with pytest.raises(Conflict, match="offline: there is nothing to update live"):
            await scene.agent.update_model("counts", digest, live=True)
        await scene.agent.online("counts", None, 1, "none")
        with pytest.raises(Conflict, match="recovery 'none'"):
            await scene.agent.update_model("counts", digest, live=True)
        with pytest.raises(Conflict, match="online"):
            await scene.agent.update_model("counts", digest)
        await offline(scene.agent, "counts")
        await scene.agent.online("counts", None, 1, "passive")
        other = await upload(scene.agent, scene.source("3", UNKEYED))
        with pytest.raises(UsageError, match="cannot be updated live: it had 2 stages"):
            await scene.agent.update_model("counts", other, live=True)
        assert (await scene.view()).version == "1"


@asynchronous
async def test_an_update_is_called_off_and_one_that_is_done_is_rolled_back(valkey, prefix, tmp_path, monkeypatch):
    async with updated(valkey, prefix, tmp_path) as scene:
        await scene.begin(executors=1)
        monkeypatch.setattr(upgrading, "SHADOW", 60.0)
        task = asyncio.create_task(scene.update())
        await until(lambda: scene.plan.upgrade is not None and scene.plan.upgrade.shadowed)
        with pytest.raises(Conflict, match="being updated already"):
            await scene.update(version="3")
        with pytest.raises(Conflict, match="being updated"):
            await scene.agent.move("counts", "1.0", "b")
        back = settled(await scene.agent.rollback("counts", live=True))
        assert back.version == "1"
        with pytest.raises(ClusterError, match="it was called off"):
            await task
        await scene.more("1")
        monkeypatch.setattr(upgrading, "SHADOW", 0.5)
        same = TWO.replace('{"counted": {key: {"n": n} for key, n in state["count"].items()}}', "state")
        same = same.replace('"counted"', '"count"').replace('lambda: {"n": 0}', "0")
        same = same.replace('{"n": state["n"] + 1}', "state + 1").replace('state["n"] + 1', "state + 1")
        await scene.update(same, "4")
        await scene.marked("4")
        settled(await scene.agent.rollback("counts", live=True))
        await scene.more("1")
        kinds = [kind for kind in ("1", "4") if any(value[0] == kind for _, value in scene.shown())]
        assert kinds == ["1", "4"]


# ---- faults in the middle ----------------------------------------------------------------------------------------


REACHED = {
    "shadow": lambda update: update.shadowed,
    "ordered": lambda update: update.ordered,
    "trial": lambda update: update.done,
    "settling": lambda update: update.proved,
}


async def reached(scene, phase):
    """The model, as soon as its update is so far."""

    def there():
        state = scene.agent._view.models[NAME]
        return state if state.plan.upgrade is not None and REACHED[phase](state.plan.upgrade) else None

    return await until(there)


async def outcome(scene, task):
    """The version that has won, with everything exact; the catalogue names it."""
    try:
        await task
    except ClusterError as error:
        print(error)
        mark = "1"
    else:
        mark = "2"
    await scene.catalogue(mark)
    await scene.has("online")
    await scene.more(mark)
    scene.exact(*["1", "2"][: int(mark)])
    assert scene.plan.upgrade is None
    return mark


@pytest.mark.faults
@pytest.mark.parametrize("phase", list(REACHED))
@pytest.mark.parametrize("victim", ["old", "new"])
@asynchronous
async def test_a_worker_is_killed_in_the_middle(valkey, prefix, tmp_path, phase, victim):
    async with updated(valkey, prefix, tmp_path) as scene:
        await scene.begin()
        task = asyncio.create_task(scene.update())
        try:
            state = await reached(scene, phase)
            plan = state.plan
            (pid, *_) = sorted(
                {
                    state.run[name].pid
                    for name, seat in plan.replicas.items()
                    if plan.upgraded(seat) is (victim == "new") and name in state.run and name[0] == "1"
                    if state.run[name].pid
                    and (phase != "shadow" or victim == "new" or name == plan.records[name[:3]].primary)
                }
            ) or [0]
            if pid:
                os.kill(pid, signal.SIGKILL)
        finally:
            won = await outcome(scene, task)
        if phase == "shadow" or not pid:
            assert won == "2"
        view = await scene.view()
        assert (view.error, view.lost) == ("", 0)


@pytest.mark.faults
@pytest.mark.parametrize("phase", ["shadow", "ordered", "trial"])
@asynchronous
async def test_a_node_leaves_in_the_middle(valkey, prefix, tmp_path, phase):
    """Also the leader."""
    async with updated(valkey, prefix, tmp_path, ("a", "b", "c")) as scene:
        await scene.begin()
        task = asyncio.create_task(scene.update())
        await reached(scene, phase)
        leader = next(name for name, agent in scene.agents.items() if agent is scene.leader)
        await scene.cluster.remove(leader)
        with contextlib.suppress(ClusterError, asyncio.CancelledError):
            await task

        async def over():
            state = scene.agent._view.models[NAME]
            return state.plan is not None and not upgrading.under_way(state)

        await until(over, 60)
        version = scene.plan.version
        await scene.catalogue(version)
        await scene.more(version)
        scene.exact(*["1", "2"][: int(version)])


@pytest.mark.faults
@asynchronous
async def test_who_takes_over_between_a_restore_and_the_next_checkpoint_shows_everything(
    valkey, prefix, tmp_path, monkeypatch
):
    async with updated(valkey, prefix, tmp_path) as scene:
        await scene.begin(executors=1)
        take = Parts.take

        async def refuse(*_):
            raise Unavailable("not now")

        monkeypatch.setattr(Parts, "take", refuse)
        scene.kill_workers()
        await scene.said("model.restored")
        await scene.has("online")
        before = (await scene.view()).records_in

        async def went_on():
            return (await scene.view()).records_in > before + 100

        await until(went_on)
        (standby,) = scene.plan.records["1.0"].protecting
        assert (await scene.agent.move("counts", "1.0", scene.plan.replicas[standby].node)).done
        monkeypatch.setattr(Parts, "take", take)
        await scene.more("1")
        scene.exact("1")


@pytest.mark.faults
@pytest.mark.parametrize("phase", ["shadow", "trial"])
@asynchronous
async def test_redis_loses_its_memory_in_the_middle(valkey, prefix, tmp_path, phase):
    async with updated(valkey, prefix, tmp_path) as scene:
        await scene.begin()
        task = asyncio.create_task(scene.update())
        await reached(scene, phase)
        await empty(scene.agent._bus)
        with contextlib.suppress(ClusterError):
            await task

        async def over():
            state = scene.agent._view.models.get(NAME)
            return state is not None and state.plan is not None and not upgrading.under_way(state)

        await until(over, 60)
        await scene.catalogue("2")
        await scene.more("2")
        scene.exact("1", "2")


@asynchronous
async def test_a_model_without_traffic_is_updated_too(valkey, prefix, tmp_path):
    """Nothing tells the shadow any more what is safe of a sink that shows records at once."""
    text = """
import penstock as ps

flow = ps.Flow("counts")
flow.source("in", ps.push()).key_by("word", lambda word: word).count("count").sink("out", ps.null())
# {version}
"""
    async with updated(valkey, prefix, tmp_path, ("a", "b", "c")) as scene:
        for version in ("1", "2"):
            (tmp_path / f"counts{version}.py").write_text(text.format(version=version))
        await add(scene.agent, tmp_path / "counts1.py", "counts")
        settled(await scene.agent.online("counts", None, 1, "passive"))
        await scene.agent.push("counts", "in", ["a", "b", "a"], "me", 1)
        await scene.checkpointed(2)
        await update(scene.agent, "counts", tmp_path / "counts2.py", live=True)
        await scene.agent.push("counts", "in", ["a"], "me", 2)

        async def counted():
            return dict((await scene.agent.listing("counts", "count", 10)).items) == {"a": 3, "b": 1}

        await until(counted)
