from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import pytest
from tests.cluster.models import add, delete, offline, online
from tests.cluster.nodes import Cluster, asynchronous, until

from penstock.cluster.addresses import data_address
from penstock.cluster.service import Conflict, NoRoom, NotFound, Pushed
from penstock.errors import ClusterError, FlowError, UsageError


async def counted(agent, name, word, number):
    found = await agent.lookup(name, "count", word)
    return found.found and found.value == number


def pids(view):
    return {executor.id: executor.pid for executor in view.executors}


@asynchronous
async def test_a_model_goes_online_counts_answers_and_goes_offline(valkey, prefix, counting):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        added = await add(agent, counting)
        assert (added.name, added.status, added.desired) == ("default/counting", "offline", "offline")
        running = await online(agent, "counting", executors=2)
        assert running.status == "online"
        assert [e.id for e in running.executors] == ["0.0", "0.1", "1.0", "1.1"]
        assert await agent.push("counting", "lines", ["a b a", "c a"]) == Pushed(2)
        await until(lambda: counted(agent, "counting", "a", 3))
        assert (await agent.lookup("counting", "count", "nowhere")).found is False
        page = await agent.listing("counting", "count", limit=2)
        assert page.items == [("a", 3), ("b", 1)]
        rest = await agent.listing("counting", "count", limit=2, cursor=page.cursor)
        assert (rest.items, rest.cursor) == ([("c", 1)], None)
        assert len(await agent.results("counting")) == 5
        view = await until(lambda: with_records(agent, "counting", 2))
        assert view.status == "online"
        stopped = await offline(agent, "counting")
        assert (stopped.status, stopped.executors) == ("offline", [])
        await until(lambda: not agent._runner.workers.groups())
        await delete(agent, "counting")
        with pytest.raises(NotFound, match="default/counting"):
            await agent.model("counting")
        kinds = [entry.kind for entry in await agent.log(model="counting")]
        assert kinds.count("operation.begun") == 4
        assert [kind for kind in kinds if kind != "operation.begun"] == [
            "model.added",
            "model.online",
            "model.placed",
            "model.running",
            "model.offline",
            "model.deleted",
        ]


async def with_records(agent, name, number):
    view = await agent.model(name)
    return view if view.records_in == number else None


@asynchronous
async def test_three_nodes_share_the_executors_and_any_of_them_answers(valkey, prefix, counting):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "b", "c")
        await add(cluster.agents["b"], counting)
        view = await online(cluster.agents["c"], "counting", executors=3)
        assert {e.node for e in view.executors} == {"a", "b", "c"}
        words = [f"w{i}" for i in range(60)]
        for name in "abc":
            assert await cluster.agents[name].push("counting", "lines", [" ".join(words)]) == Pushed(1)
        for word in words:
            for agent in cluster.agents.values():
                await until(lambda agent=agent, word=word: counted(agent, "counting", word, 3))
        items, cursor = [], None
        while True:
            page = await cluster.agents["a"].listing("counting", "count", limit=17, cursor=cursor)
            items += page.items
            if (cursor := page.cursor) is None:
                break
        assert items == [(word, 3) for word in sorted(words)]
        assert len(await cluster.agents["b"].results("counting", limit=1000)) == 180
        placed = await cluster.agents["a"].placement("counting")
        assert placed.load == {"a": 2, "b": 2, "c": 2}
        await until(lambda: cut(cluster.agents["b"], "counting"))
        for agent in cluster.agents.values():
            assert [(n.id, n.live) for n in await agent.nodes()] == [("a", True), ("b", True), ("c", True)]
            assert sum(n.leader for n in await agent.nodes()) == 1


async def cut(agent, name):
    return 0 < (await agent.placement(name)).cut <= 1


@asynchronous
async def test_a_killed_worker_is_restarted_empty_and_the_loss_is_seen(valkey, prefix, counting):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "b")
        agent = cluster.agents["a"]
        await add(agent, counting)
        before = await online(agent, "counting", executors=2)
        victim = next(e for e in before.executors if e.id == "1.0")
        await agent.push("counting", "lines", ["a b c d e f g h"])
        await until(lambda: counted(agent, "counting", "a", 1))
        reported = await until(lambda: holds(agent, "counting", 8))
        held = sum(e.keys for e in reported.executors if e.node == victim.node)
        assert held > 0
        os.kill(victim.pid, signal.SIGKILL)
        after = await until(lambda: restarted(agent, "counting", victim))
        assert after.status == "online"
        assert after.keys_lost == held
        assert after.restarts == sum(1 for e in before.executors if e.node == victim.node)
        moved = {e.id for e in after.executors if e.epoch != "1.1"}
        assert moved == {e.id for e in before.executors if e.node == victim.node}
        await agent.push("counting", "lines", ["z z"])
        await until(lambda: counted(agent, "counting", "z", 2))
        kinds = [entry.kind for entry in await agent.log(model="counting")]
        assert "worker.lost" in kinds
        assert "executor.restarted" in kinds
        assert "model.running" in kinds
        (told,) = [e.text for e in await agent.log(model="counting") if e.kind == "executor.restarted"]
        assert f"with empty state, {held} key" in told


async def holds(agent, name, keys):
    view = await agent.model(name)
    return view if sum(e.keys for e in view.executors) == keys else None


async def restarted(agent, name, victim):
    view = await agent.model(name)
    now = next(e for e in view.executors if e.id == victim.id)
    return view if view.status == "online" and now.pid not in (0, victim.pid) else None


@asynchronous
async def test_a_node_that_leaves_hands_its_executors_over(valkey, prefix, counting):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "b", "c")
        await add(cluster.agents["a"], counting)
        await online(cluster.agents["a"], "counting", executors=3)
        await cluster.agents["a"].push("counting", "lines", [" ".join(f"w{i}" for i in range(60))])
        reports = [await until(lambda name=name: holds(cluster.agents[name], "counting", 60)) for name in "ac"]
        held = sum(e.keys for e in reports[0].executors if e.node == "b")
        await cluster.remove("b")
        agent = cluster.agents["c"]
        view = await until(lambda: only_on(agent, "counting", {"a", "c"}))
        assert view.keys_lost == held > 0
        assert view.restarts >= 1
        await agent.push("counting", "lines", ["x y x"])
        await until(lambda: counted(cluster.agents["a"], "counting", "x", 2))


async def only_on(agent, name, nodes):
    view = await agent.model(name)
    return view if view.status == "online" and {e.node for e in view.executors} <= nodes else None


@asynchronous
async def test_the_leader_leaves_and_another_one_leads(valkey, prefix):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "b")
        first = next(n.id for n in await cluster.agents["a"].nodes() if n.leader)
        await cluster.remove(first)
        (other,) = cluster.agents.values()
        await until(lambda: leads(other))
        terms = [e.text for e in await other.log(limit=1000) if e.kind == "leader.elected"]
        assert terms == [f"node {first} leads (term 1)", f"node {other.node_id} leads (term 2)"]


async def leads(agent):
    return (await agent.health()).leader


@asynchronous
async def test_a_flow_that_does_not_build_is_refused_with_the_authors_error(valkey, prefix, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import penstock as ps\nflow = ps.Flow('x')\nflow.source('s', ps.push()).map('m', str)\n")
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        with pytest.raises(FlowError, match="sink"):
            await add(agent, str(broken))
        with pytest.raises(UsageError, match=r"there is no flow at .*nowhere.py"):
            await add(agent, str(tmp_path / "nowhere.py"))
        broken.write_text("import time\ntime.sleep(60)\n")
        agent._settings = cluster.settings.__class__(**{**as_dict(cluster.settings), "worker_start": 0.5})
        with pytest.raises(FlowError, match="not built after"):
            await add(agent, str(broken))
        assert await agent.models() == []


def as_dict(struct):
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


@asynchronous
async def test_a_step_that_raises_fails_the_model_and_says_where(valkey, prefix, tmp_path):
    path = tmp_path / "dividing.py"
    path.write_text(
        "import penstock as ps\n"
        "flow = ps.Flow('dividing')\n"
        "flow.source('numbers', ps.push()).map('invert', lambda n: 1 / n).sink('out', ps.collect())\n"
    )
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        await add(agent, str(path))
        await online(agent, "dividing")
        await agent.push("dividing", "numbers", [1, 0])
        view = await until(lambda: has_status(agent, "dividing", "failed"))
        assert "invert" in view.error
        assert "division by zero" in view.error
        with pytest.raises(Conflict, match="division by zero"):
            await agent.push("dividing", "numbers", [1])
        assert (await offline(agent, "dividing")).status == "offline"
        again = await online(agent, "dividing")
        assert (again.status, again.error) == ("online", "")


async def has_status(agent, name, wanted):
    view = await agent.model(name)
    return view if view.status == wanted else None


@asynchronous
async def test_a_worker_that_crashes_again_and_again_is_given_up(valkey, prefix, tmp_path):
    path = tmp_path / "crashing.py"
    path.write_text(
        "import os\nimport penstock as ps\n"
        "flow = ps.Flow('crashing')\n"
        "flow.source('s', ps.sequence(rate=1000)).map('die', lambda n: os._exit(7)).sink('out', ps.null())\n"
    )
    async with Cluster(valkey, prefix, warm_workers=2) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        await add(agent, str(path))
        with contextlib.suppress(ClusterError):  # it may be online for a moment between two crashes
            await online(agent, "crashing")
        view = await until(lambda: has_status(agent, "crashing", "failed"))
        assert "failed 6 times" in view.error
        assert "status 7" in view.error
        restarts = [e for e in await agent.log(limit=1000) if e.kind == "executor.restarted"]
        assert len(restarts) == 5


@asynchronous
async def test_a_bounded_flow_finishes_and_can_still_be_asked(valkey, prefix, tmp_path):
    path = tmp_path / "bounded.py"
    path.write_text(
        "import penstock as ps\n"
        "flow = ps.Flow('bounded')\n"
        "flow.source('s', ps.iterable(['a', 'b', 'a'])).key_by('k', lambda w: w).count('count')"
        ".sink('out', ps.collect())\n"
    )
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        await add(agent, str(path), "tests/bounded-1")
        await online(agent, "tests/bounded-1")
        await until(lambda: has_status(agent, "tests/bounded-1", "finished"))
        assert (await agent.lookup("tests/bounded-1", "count", "a")).value == 2
        assert (await offline(agent, "tests/bounded-1")).status == "offline"


@asynchronous
async def test_what_cannot_be_done_is_refused_with_a_reason(valkey, prefix, counting):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        await add(agent, counting)
        with pytest.raises(Conflict, match="already"):
            await add(agent, counting)
        with pytest.raises(UsageError, match="not the name of a model"):
            await add(agent, counting, "no/such/name")
        with pytest.raises(NotFound):
            await online(agent, "other")
        with pytest.raises(Conflict, match="offline"):
            await agent.push("counting", "lines", ["a"])
        with pytest.raises(Conflict, match="offline already"):
            await offline(agent, "counting")
        with pytest.raises(UsageError, match="256 groups"):
            await online(agent, "counting", executors=300)
        await online(agent, "counting")
        with pytest.raises(Conflict, match="online: delete is not possible"):
            await delete(agent, "counting")
        with pytest.raises(Conflict, match="online already"):
            await online(agent, "counting")
        with pytest.raises(NotFound, match="no source 'nothing'"):
            await agent.push("counting", "nothing", ["a"])
        with pytest.raises(NotFound, match="no such step"):
            await agent.lookup("counting", "nothing", "a")
        with pytest.raises(NotFound, match="no state per key"):
            await agent.lookup("counting", "split", "a")
        with pytest.raises(PermissionError):
            await agent.internal("guess", b"")


@asynchronous
async def test_a_full_push_queue_says_no_and_a_repeat_is_taken_once(valkey, prefix, tmp_path):
    path = tmp_path / "slow.py"
    path.write_text(
        "import time\nimport penstock as ps\n"
        "flow = ps.Flow('slow')\n"
        "flow.source('s', ps.push(max_bytes=2000)).map('wait', lambda r: time.sleep(0.3) or r)"
        ".key_by('k', lambda r: r).count('count').sink('out', ps.null())\n"
    )
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        await add(agent, str(path))
        await online(agent, "slow")
        assert await agent.push("slow", "s", ["x"], client="me", seq=1) == Pushed(1)
        assert await agent.push("slow", "s", ["x"], client="me", seq=1) == Pushed(1)
        assert await agent.push("slow", "s", ["y"]) == Pushed(1)
        await until(lambda: found(agent, "slow", "y"))
        assert (await agent.lookup("slow", "count", "x")).value == 1
        answers = await asyncio.gather(*(agent.push("slow", "s", ["z" * 900]) for _ in range(8)))
        assert any(isinstance(answer, NoRoom) for answer in answers)


async def found(agent, name, key):
    return (await agent.lookup(name, "count", key)).found


@asynchronous
async def test_models_of_two_groups_have_workers_of_their_own_and_of_one_share_one(valkey, prefix, counting):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a")
        agent = cluster.agents["a"]
        processes = {}
        for name in ("one/x", "one/y", "two/x"):
            await add(agent, counting, name)
            view = await online(agent, name)
            processes[name] = {e.pid for e in view.executors}
            assert len(processes[name]) == 1
        assert processes["one/x"] == processes["one/y"] != processes["two/x"]
        await agent.push("one/x", "lines", ["a"])
        await until(lambda: counted(agent, "one/x", "a", 1))
        assert not (await agent.lookup("one/y", "count", "a")).found
        await asyncio.gather(*(offline(agent, name) for name in processes))


@asynchronous
async def test_nodes_with_an_address_of_their_own_exchange_records_over_tcp(valkey, prefix, counting):
    async with Cluster(valkey, prefix) as cluster:
        await cluster.add("a", "b", bind="127.0.0.1")
        agent = cluster.agents["a"]
        await add(agent, counting)
        await online(agent, "counting", executors=2)
        run = agent._view.models["default/counting"].run
        assert all(r.endpoint.startswith("tcp://127.0.0.1:") and r.server_key for r in run.values())
        words = [f"w{i}" for i in range(40)]
        await agent.push("counting", "lines", [" ".join(words)])
        for word in words:
            await until(lambda word=word: counted(agent, "counting", word, 1))
        await until(lambda: cut(agent, "counting"))


def test_the_data_address_follows_from_the_nodes_address():
    assert data_address("http://127.0.0.1:8700") is None
    assert data_address("http://localhost:8700") is None
    assert data_address("http://[::1]:8700") is None
    assert data_address("https://10.1.2.3:8700") == "10.1.2.3"
    with pytest.raises(ClusterError, match="cannot be resolved"):
        data_address("http://no.such.host.invalid:8700")
