"""Versions, configuration, dry runs, who did what, and what models say."""

from __future__ import annotations

import asyncio

import pytest
from tests.cluster.models import add, delete, offline, online, update, upload
from tests.cluster.nodes import Cluster, asynchronous, until
from tests.model.wheels import project

from penstock.cluster.service import Ask, Conflict, NotFound, Pushed, RolledBack
from penstock.errors import FlowError, UsageError

TOML = """
[tool.penstock]
name = "greet"
version = "{version}"
flow = "greet:flow"

[tool.penstock.config]
word = "hello"
times = {{ type = "integer", default = 1, minimum = 1, maximum = 9 }}
"""
SOURCE = """
import penstock as ps

def greet(record):
    print("greeting", record)
    return f"{{ps.config['word'] * ps.config['times']}} {{record}}{mark}"

def self_test():
    assert greet("you").endswith("{mark}")

flow = ps.Flow("greet")
flow.source("in", ps.push()).map("greet", greet).sink("out", ps.collect())
"""


def greet(folder, version="1.0", mark="!", more=""):
    toml = TOML.format(version=version)
    return project(folder / version, toml, {"greet.py": SOURCE.format(mark=mark) + more})


async def answers(agent, record, text):
    await agent.push("greet", "in", [record])
    return text in await agent.results("greet")


@asynchronous
async def test_versions_come_go_and_come_back(valkey, prefix, tmp_path):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "b")
        agent, other = cluster.agents["a"], cluster.agents["b"]
        first = await add(agent, greet(tmp_path), user="ann")
        assert (first.version, first.user, first.schema["times"]["maximum"]) == ("1.0", "ann", 9)
        second = await update(other, "greet", greet(tmp_path, "2.0", "?"), user="bob")
        assert second.version == "2.0"
        third = await update(agent, "greet", config={"word": "hey"}, user="cleo")
        assert (third.digest, third.config) == (second.digest, {"word": "hey"})
        known = await other.versions("greet")
        assert [(v.version, v.config, v.user, v.current) for v in known] == [
            ("2.0", {"word": "hey"}, "cleo", True),
            ("2.0", {}, "bob", False),
            ("1.0", {}, "ann", False),
        ]
        back = (await other.rollback("greet", known[2].generation, ask=Ask(user="dan"))).model
        assert (back.version, back.digest, back.config) == ("1.0", first.digest, {})
        await online(agent, "greet", {"times": 2})
        await until(lambda: answers(agent, "you", "hellohello you!"))
        with pytest.raises(UsageError, match="no version of generation 99"):
            await agent.rollback("greet", 99)
        with pytest.raises(Conflict, match="online"):
            await agent.rollback("greet")
        await offline(agent, "greet")
        latest = (await agent.versions("greet"))[:2]
        assert [v.config for v in latest] == [{"times": 2}, {}]  # settings given at `online` make a version, too
        undone = (await agent.rollback("greet", latest[1].generation)).operation
        assert undone.kind == "rollback"
        await delete(agent, "greet", user="eve")
        told = {entry.kind: entry.user for entry in await other.log("greet")}
        assert (told["model.added"], told["model.deleted"]) == ("ann", "eve")
        texts = [entry.text for entry in await other.log("greet") if entry.user == "dan"]
        assert any(f"was rolled back to generation {known[2].generation} for dan" in text for text in texts)
        again = await add(agent, greet(tmp_path))
        assert [v.version for v in await agent.versions("greet")] == ["1.0"]
        assert again.generation > back.generation


@asynchronous
async def test_what_is_wrong_is_refused_before_anything_begins(valkey, prefix, tmp_path):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "b")
        agent = cluster.agents["a"]
        with pytest.raises(FlowError, match=r"self_test|assert"):
            await add(agent, greet(tmp_path, "3.0", "!", "\nflow_mark = 1\ndef self_test():\n    assert False\n"))
        old = greet(tmp_path, "0.1")
        toml = (
            (old / "pyproject.toml")
            .read_text()
            .replace("[tool.penstock]", '[tool.penstock]\nrequires-python = "<3.9"', 1)
        )
        (old / "pyproject.toml").write_text(toml)
        with pytest.raises(UsageError, match=r"requires Python <3\.9"):
            await add(agent, old)
        await add(agent, greet(tmp_path))
        for config, match in (({"wort": "x"}, "wort"), ({"times": 10}, "times"), ({"times": "many"}, "times")):
            with pytest.raises(UsageError, match=match):
                await update(agent, "greet", config=config)
            with pytest.raises(UsageError, match=match):
                await online(agent, "greet", config)
        with pytest.raises(UsageError, match="nothing of"):
            await agent.update_model("greet")
        with pytest.raises(UsageError, match="timeout"):
            await offline(agent, "greet", timeout=0)
        assert [operation.kind for operation in await agent.operations()] == ["add"]
        assert (await agent.model("greet")).config == {}


@asynchronous
async def test_a_dry_run_says_what_would_change_and_changes_nothing(valkey, prefix, tmp_path):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "b")
        agent = cluster.agents["a"]
        await add(agent, greet(tmp_path))
        digest = await upload(agent, greet(tmp_path, "2.0", "?"))
        plan = (await agent.update_model("greet", digest, {"word": "hey"}, ask=Ask(dry_run=True))).plan
        assert plan.possible
        assert "version 1.0 -> 2.0" in plan.changes
        assert "setting word: its default -> 'hey'" in plan.changes
        assert set(plan.nodes) == {"a", "b"}
        refused = (await agent.offline("greet", ask=Ask(dry_run=True))).plan
        assert (refused.possible, refused.nodes) == (False, {})
        assert "offline" in refused.reason
        assert (await agent.model("greet")).version == "1.0"
        assert len(await agent.operations()) == 1


@asynchronous
async def test_a_key_gives_its_first_answer_at_any_node(valkey, prefix, tmp_path):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "b")
        agent, other = cluster.agents["a"], cluster.agents["b"]
        first = await add(agent, greet(tmp_path), key="k-add")
        assert (await add(other, greet(tmp_path), key="k-add")).generation == first.generation
        assert (await update(agent, "greet", config={"word": "a"}, key="k-update")).config == {"word": "a"}
        await update(agent, "greet", config={"word": "b"})
        rolled = (await agent.rollback("greet", ask=Ask(key="k-back"))).operation
        assert (await other.rollback("greet", ask=Ask(key="k-back"))).operation.id == rolled.id
        assert (await agent.model("greet")).config == {"word": "a"}
        await online(other, "greet", key="k-online")
        assert (await online(agent, "greet", key="k-online")).status == "online"
        with pytest.raises(UsageError, match="k-online"):
            await offline(agent, "greet", key="k-online")
        await offline(agent, "greet")


@asynchronous
async def test_an_operation_can_be_watched_and_cancelled_until_it_is_decided(valkey, prefix, tmp_path):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "b")
        agent, other = cluster.agents["a"], cluster.agents["b"]
        waiting = asyncio.Event()
        prepare = other._preparation.prepare

        async def slowly(tx):
            await waiting.wait()
            await prepare(tx)

        other._participation._hands.prepare = slowly
        digest = await upload(agent, greet(tmp_path))
        pending = await agent.add_model(digest, ask=Ask(wait=0.3, user="ann"))
        assert pending.pending
        assert pending.operation.nodes == {"a": "ready", "b": "waiting"}
        ended = await other.cancel_operation(pending.operation.id, "bob")
        assert (ended.phase, ended.reason) == ("aborted", "it was cancelled by bob")
        waiting.set()
        with pytest.raises(NotFound):
            await agent.model("greet")
        del other._participation._hands.prepare
        again = await agent.add_model(await upload(agent, greet(tmp_path)))
        with pytest.raises(Conflict, match="too late"):
            await agent.cancel_operation(again.operation.id)


@asynchronous
async def test_a_node_that_says_no_is_named_and_nothing_is_left(valkey, prefix, tmp_path):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "b")
        agent = cluster.agents["a"]
        only_here = f"\nimport os\nif {str(tmp_path)!r} in os.environ.get('NOWHERE', ''):\n    pass\n"

        async def refuse(tree, config=None, *, environment=None, self_test=True):
            raise FlowError("greet", "this machine has no camera")

        cluster.agents["b"]._verifier.verify = refuse
        with pytest.raises(RolledBack) as caught:
            await add(agent, greet(tmp_path, more=only_here))
        assert set(caught.value.nodes) == {"b"}
        assert "no camera" in caught.value.nodes["b"]
        assert await agent.models() == []
        for node in cluster.agents.values():
            await until(lambda node=node: not node._library.staged())
            assert node._library.stats()["packages"] == 0


@asynchronous
async def test_what_a_model_prints_is_found_at_any_node(valkey, prefix, tmp_path):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "b")
        agent, other = cluster.agents["a"], cluster.agents["b"]
        await add(agent, greet(tmp_path))
        await online(agent, "greet")
        assert await agent.push("greet", "in", ["Ada"]) == Pushed(1)
        await until(lambda: printed(other, "greeting Ada"))
        assert "greeting Ada" not in [entry.text for entry in await other.log("greet")]
        await offline(agent, "greet")


async def printed(agent, text):
    return text in [entry.text for entry in await agent.logs("greet")]
