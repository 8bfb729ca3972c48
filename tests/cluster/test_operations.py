"""How operations, plans and what runs on a node fit together when something comes at a bad moment."""

from __future__ import annotations

import asyncio
import os
import signal

import msgspec
import pytest
from tests.cluster.models import add, delete, online, update, upload
from tests.cluster.nodes import Cluster, asynchronous, until
from tests.cluster.test_versions import greet

from penstock.cluster.service import Ask, Conflict, Pushed, Unavailable
from penstock.errors import FlowError, UsageError

NAME = "default/counting"


async def _online(agent):
    return (await agent.model(NAME)).status == "online"


async def _online_again(agent):
    view = await agent.model(NAME)
    return view.status == "online" and any(executor.restarts for executor in view.executors)


async def _restored(agent):
    return any(entry.kind == "plan.restored" for entry in await agent.log(model=NAME))


def _hosted(agent):
    return [host for host in agent._runner._hosts.values() if host.model == NAME]


@asynchronous
async def test_a_model_runs_on_while_its_package_is_brought_back(valkey, prefix, counting):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        await add(agent, counting)
        await online(agent, "counting")
        digest = (await agent.model(NAME)).digest
        pids = {executor.pid for executor in (await agent.model(NAME)).executors}
        for file in agent._library.tree(digest).rglob("*.py"):
            file.unlink()
        assert await agent._library.check([digest]) == [digest]
        for _ in range(5):
            agent._wake()
            await asyncio.sleep(0.05)
        assert _hosted(agent)
        await agent._library.obtain(digest, [])
        await until(lambda: _online(agent), 5)
        assert {executor.pid for executor in (await agent.model(NAME)).executors} == pids


@asynchronous
async def test_a_view_that_comes_late_does_not_stop_what_was_planned_since(valkey, prefix, counting):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        await add(agent, counting)
        await online(agent, "counting")
        late = agent._view.models
        os.kill((await agent.model(NAME)).executors[0].pid, signal.SIGKILL)
        await until(lambda: _online_again(agent))
        running = agent._view.models[NAME].plan
        assert running.revision > late[NAME].plan.revision
        agent._runner.apply(agent._view.lineage, late)
        for _ in range(10):
            agent._wake()
            await asyncio.sleep(0.05)
        assert await _online(agent)
        assert agent._view.models[NAME].plan == running


@asynchronous
async def test_the_later_of_two_plans_is_brought_back(valkey, prefix, counting):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        await add(agent, counting)
        await online(agent, "counting")
        earlier = agent._view.models[NAME].plan
        os.kill((await agent.model(NAME)).executors[0].pid, signal.SIGKILL)
        await until(lambda: _online_again(agent))
        running, before = agent._view.models[NAME].plan, (await agent.model(NAME)).executors
        bus = agent._bus
        await bus.command("HSET", bus.key("counters"), NAME, earlier.revision)
        await bus.command("SET", bus.key(f"plan:{NAME}"), msgspec.json.encode(earlier))
        await bus.command("INCR", bus.key("rev"))
        await until(lambda: _restored(agent), 5)
        await until(lambda: agent._view.models[NAME].plan == running, 5)
        assert {e.pid for e in (await agent.model(NAME)).executors} == {e.pid for e in before}


@asynchronous
async def test_an_operation_is_refused_when_the_model_was_changed_while_it_was_checked(valkey, prefix, tmp_path):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        await add(agent, greet(tmp_path))
        reexamine, preparation = agent._preparation.reexamine, agent._preparation

        async def meanwhile(digest, given):
            topology = await reexamine(digest, given)
            preparation.reexamine = reexamine
            await update(agent, "greet", config={"word": "changed"})
            return topology

        preparation.reexamine = meanwhile
        with pytest.raises(Unavailable, match="changed by somebody else"):
            await online(agent, "greet")
        view = await agent.model("greet")
        assert (view.status, view.config) == ("offline", {"word": "changed"})


@asynchronous
async def test_a_key_is_for_one_request_only(valkey, prefix, tmp_path):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        await add(agent, greet(tmp_path))
        first = await update(agent, "greet", config={"word": "one"}, key="k1")
        with pytest.raises(UsageError, match="'k1' was used for another request"):
            await update(agent, "greet", config={"word": "two"}, key="k1")
        with pytest.raises(UsageError, match="'k1' was used for another request"):
            await update(agent, "greet", greet(tmp_path, "2.0"), key="k1")
        assert (await update(agent, "greet", config={"word": "one"}, key="k1")).generation == first.generation
        await online(agent, "greet", executors=1, key="k2")
        with pytest.raises(UsageError, match="'k2' was used for another request"):
            await online(agent, "greet", executors=2, key="k2")
        assert (await online(agent, "greet", executors=1, key="k2")).status == "online"


@asynchronous
async def test_what_could_not_be_tidied_away_is_tidied_later(valkey, prefix, tmp_path):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        await add(agent, greet(tmp_path))
        async with agent._preparation._working():
            await delete(agent, "greet")
            await asyncio.sleep(2.5)  # more than one round
            assert agent._library.stats()["packages"] == 1
        await until(lambda: agent._library.stats()["packages"] == 0, 10)


@asynchronous
async def test_an_error_in_the_program_is_told_and_does_not_end_the_work_of_a_node(valkey, prefix, counting):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        apply = agent._runner.apply

        def broken(*_):
            agent._runner.apply = apply
            raise KeyError("unexpected")

        agent._runner.apply = broken
        await until(lambda: agent._runner.apply == apply)
        await add(agent, counting)
        assert (await online(agent, "counting")).status == "online"
        assert any("KeyError: 'unexpected'" in entry.text for entry in await agent.log())


RAISES = """
import penstock as ps

def check(record):
    raise ValueError("\\udcff" + "x" * 3_000_000)

flow = ps.Flow("raises")
flow.source("in", ps.push()).map("check", check).sink("out", ps.collect())
"""


@asynchronous
async def test_an_endless_error_is_cut_before_everybody_has_to_read_it(valkey, prefix, tmp_path):
    path = tmp_path / "raises.py"
    path.write_text(RAISES)
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        await add(agent, path)
        await online(agent, "raises")
        await agent.push("raises", "in", [1])
        await until(lambda: agent._view.models["default/raises"].entry.error)
        error = agent._view.models["default/raises"].entry.error
        assert "ValueError" in error
        assert len(error) < 10_000
        assert all(len(entry.text) < 50_000 for entry in [*await agent.log(), *await agent.logs("raises")])


@asynchronous
async def test_a_newcomer_gets_the_packages_after_redis_has_lost_its_memory(valkey, prefix, tmp_path):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "c")
        agent = cluster.agents["a"]
        await add(agent, greet(tmp_path))
        bus = agent._bus
        _, names = await bus.command("SCAN", 0, "MATCH", bus.key("*"), "COUNT", 10_000)
        await bus.command("DEL", *names)
        await until(lambda: len(agent._view.lineage) > 1 and len(agent._view.members) == 2)
        await cluster.add("b")
        await online(cluster.agents["b"], "greet", executors=3)
        assert await cluster.agents["b"].push("greet", "in", ["x"]) == Pushed(1)
        await until(lambda: cluster.agents["c"].results("greet"))


@asynchronous
async def test_what_did_not_begin_leaves_nothing_behind(valkey, prefix, tmp_path):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        await add(agent, greet(tmp_path), key="first")
        await until(lambda: not agent._library.staged())
        async with agent._preparation._working():  # so that nothing is tidied away
            with pytest.raises(Conflict):
                await add(agent, greet(tmp_path))
            await add(agent, greet(tmp_path), key="first")
            await agent.add_model(await upload(agent, greet(tmp_path)), "other", ask=Ask(dry_run=True))
            with pytest.raises(FlowError):
                await add(agent, greet(tmp_path, "3.0", more="\n1 / 0\n"))
            assert agent._library.staged() == set()
