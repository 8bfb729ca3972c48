"""Nodes that come late, come back, or come back damaged: they serve only when they have what the catalogue says."""

from __future__ import annotations

import pytest
from tests.cluster.models import add, delete, offline, online, update
from tests.cluster.nodes import Cluster, asynchronous, until

from penstock.cluster.service import Pushed
from penstock.errors import ClusterError

ECHO = """
import penstock as ps

flow = ps.Flow("echo")
flow.source("in", ps.push()).map("say", lambda r: {word!r}).sink("out", ps.collect())
"""


def echo(folder, word, name="echo"):
    path = folder / f"{name}.py"
    path.write_text(ECHO.format(word=word))
    return path


def packages(agent):
    return {path.name for path in (agent._data.path / "library").iterdir()}


async def said(agent, name, text):
    return text in await agent.results(name)


@asynchronous
async def test_a_node_that_was_away_synchronises_before_it_serves(valkey, prefix, tmp_path, counting):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        await cluster.add("b", data_dir=tmp_path / "b")
        agent = cluster.agents["a"]
        await add(agent, echo(tmp_path, "old"))
        gone = await add(agent, echo(tmp_path, "gone", "passing"))
        await cluster.remove("b")
        await until(lambda: alone(agent))
        await update(agent, "echo", echo(tmp_path, "new"))
        await delete(agent, "passing")
        added = await add(agent, counting)
        await online(agent, "counting")
        await cluster.add("b", data_dir=tmp_path / "b")  # returns when it is ready
        back = cluster.agents["b"]
        present = {model.name: model.digest for model in await back.models()}
        assert present == {model.name: model.digest for model in await agent.models()}
        assert added.digest in packages(back)
        await until(lambda: gone.digest not in packages(back))
        await until(lambda: packages(back) == packages(agent))  # with the version that can be brought back
        await cluster.remove("a")
        await until(lambda: back_online(back))  # it can carry on alone, from its own library
        await back.rollback("echo")
        await online(back, "echo")
        assert await back.push("echo", "in", [1]) == Pushed(1)
        await until(lambda: said(back, "echo", "old"))


async def alone(agent):
    return [node.id for node in await agent.nodes()] == ["a"]


async def back_online(agent):
    return (await agent.model("counting")).status == "online"


@asynchronous
async def test_damaged_and_foreign_files_are_repaired_and_removed_when_a_node_starts(valkey, prefix, tmp_path):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        await cluster.add("b", data_dir=tmp_path / "b")
        model = await add(cluster.agents["a"], echo(tmp_path, "hello"))
        await cluster.remove("b")
        library = tmp_path / "b" / "library"
        wheel, module = library / model.digest / "package.whl", library / model.digest / "tree" / "echo.py"
        wheel.write_bytes(wheel.read_bytes()[:-10])
        module.write_text("raise SystemExit('not what was added')")
        (library / ("f" * 64)).mkdir()
        (library / "notes.txt").write_text("not ours")
        await cluster.add("b", data_dir=tmp_path / "b")
        assert "hello" in module.read_text()
        await until(lambda: packages(cluster.agents["b"]) == {model.digest})
        await cluster.remove("a")
        await online(cluster.agents["b"], "echo")
        assert await cluster.agents["b"].push("echo", "in", [1]) == Pushed(1)
        await until(lambda: said(cluster.agents["b"], "echo", "hello"))
        await offline(cluster.agents["b"], "echo")


@asynchronous
async def test_a_data_directory_belongs_to_one_process_and_one_cluster(valkey, prefix, tmp_path):
    async with Cluster(valkey, prefix) as cluster, Cluster(valkey, prefix + "-other") as other:
        await cluster.add("a", data_dir=tmp_path / "a")
        with pytest.raises(ClusterError, match="another process uses the data directory"):
            await cluster.make("b", data_dir=tmp_path / "a").start()
        await add(cluster.agents["a"], echo(tmp_path, "hello"))
        await cluster.remove("a")
        await other.add("x")
        with pytest.raises(ClusterError, match="that of node"):
            await other.make("b", data_dir=tmp_path / "a").start()
        with pytest.raises(ClusterError, match="another catalogue"):
            await other.make("a", data_dir=tmp_path / "a").start()
