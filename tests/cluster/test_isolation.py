"""Models side by side: equal names and different versions of one dependency in two groups, and nothing left behind."""

from __future__ import annotations

import os

import psutil
from tests.cluster.models import add, delete, offline, online, update
from tests.cluster.nodes import Cluster, asynchronous, until
from tests.model.wheels import dependency, project

from penstock.cluster.service import Pushed

SOURCE = """
import shapes
import penstock as ps

class Box:
    def open(self, record):
        return {word!r} + " with shapes " + shapes.VERSION

box = Box()
flow = ps.Flow("boxes")
flow.source("in", ps.push()).map("open", box.open).sink("out", ps.collect())
"""


def boxes(folder, word, version):
    """A model whose module, class and variable names are those of its neighbour, with `shapes` of this version."""
    dependency(folder / "wheels", "shapes", version)
    toml = f"""
[tool.penstock]
name = "boxes"
group = "{word}"
version = "1.0"
flow = "boxes:flow"
requires = ["shapes=={version}"]
"""
    return project(folder, toml, {"boxes.py": SOURCE.format(word=word)})


async def said(agent, name, text):
    return text in await agent.results(name)


@asynchronous
async def test_two_groups_with_equal_names_and_two_versions_of_a_dependency_run_side_by_side(valkey, prefix, tmp_path):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "b")
        agent, other = cluster.agents["a"], cluster.agents["b"]
        await add(agent, boxes(tmp_path / "one", "red", "1.0"))
        await add(other, boxes(tmp_path / "two", "blue", "2.0"))
        red = await online(other, "red/boxes", executors=2)
        blue = await online(agent, "blue/boxes", executors=2)
        assert {e.node for e in red.executors} == {e.node for e in blue.executors} == {"a", "b"}
        assert {e.pid for e in red.executors}.isdisjoint({e.pid for e in blue.executors})
        assert red.requires == ["shapes==1.0"]
        assert await agent.push("red/boxes", "in", [1]) == Pushed(1)
        assert await other.push("blue/boxes", "in", [1]) == Pushed(1)
        await until(lambda: said(agent, "red/boxes", "red with shapes 1.0"))
        await until(lambda: said(agent, "blue/boxes", "blue with shapes 2.0"))
        await offline(agent, "red/boxes")
        await update(agent, "red/boxes", boxes(tmp_path / "three", "red", "2.0"))
        await online(agent, "red/boxes")
        assert await agent.push("red/boxes", "in", [1]) == Pushed(1)
        await until(lambda: said(other, "red/boxes", "red with shapes 2.0"))


def held(agent):
    """What a node holds of its machine: processes, open files, entries in its directories."""
    process = psutil.Process(os.getpid())
    files = sum(len(names) for _, _, names in os.walk(agent._data.path))
    return len(process.children(recursive=True)), process.num_fds(), files


@asynchronous
async def test_going_online_and_offline_again_and_again_leaves_nothing(valkey, prefix, counting):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]

        async def turn():
            await add(agent, counting)
            await online(agent, "counting")
            await offline(agent, "counting")
            await delete(agent, "counting")

        async def calm():
            busy = agent._runner.workers.groups() or len(agent._runner.workers.pids()) != 1
            return not busy and not agent._library.staged() and not agent._library.stats()["packages"]

        await turn()
        await until(calm)
        processes, descriptors, files = held(agent)
        for _ in range(20):
            await turn()
        await until(calm)
        # The pool of connections to Redis may still grow by as many as are used at once.
        await until(lambda: held(agent) in [(processes, descriptors + more, files) for more in range(-5, 6)])
