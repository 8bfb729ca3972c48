"""Models with replicas on real nodes and workers that are killed, stopped, moved and left alone while records come."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import pytest
from tests.cluster.models import add, offline, settled
from tests.cluster.nodes import Cluster, asynchronous, until

from penstock.cluster.checkpoint_parts import Parts
from penstock.cluster.service import Conflict, NoRoom, NotFound, Unavailable
from penstock.settings import RunSettings

pytestmark = pytest.mark.faults
BOTH = pytest.mark.parametrize("recovery", ["active", "passive"])


class Lines:
    """Pushes numbered lines to whatever node answers, until it is told to stop; every line is acknowledged."""

    def __init__(self, cluster):
        self.cluster, self.sent = cluster, 0
        self._stop = False

    async def push(self, number):
        while True:
            for agent in list(self.cluster.agents.values()):
                with contextlib.suppress(Unavailable):
                    answer = await agent.push("counting", "lines", [f"all w{number % 5}"], "me", number)
                    if not isinstance(answer, NoRoom):
                        return
            await asyncio.sleep(0.01)

    async def run(self):
        while not self._stop:
            await self.push(self.sent)
            self.sent += 1
            await asyncio.sleep(0.002)

    @contextlib.asynccontextmanager
    async def flowing(self):
        """While this lasts, lines come; at the end every one of them has been counted once."""
        self._stop = False
        task = asyncio.create_task(self.run())
        try:
            first = self.sent
            await until(lambda: self.sent > first + 20)
            yield
            now = self.sent
            await until(lambda: self.sent > now + 20)
        finally:
            self._stop = True
            await task
        await self.counted()

    async def counted(self):
        """Everything that was pushed is there, once."""
        wanted = {"all": self.sent}
        for number in range(self.sent):
            wanted[f"w{number % 5}"] = wanted.get(f"w{number % 5}", 0) + 1
        found = {}

        async def right():
            page = await self.agent.listing("counting", "count", 100)
            found.update(dict(page.items))
            return found == wanted

        try:
            await until(right, 15)
        except AssertionError:
            raise AssertionError(f"{found} instead of {wanted}") from None

    @property
    def agent(self):
        return next(iter(self.cluster.agents.values()))


@contextlib.asynccontextmanager
async def running(valkey, prefix, counting, tmp_path, recovery, names="abc", executors=2, run_settings=None, **changes):
    changes = {"lease": 8.0, "leader_lease": 8.0, "silence": 4.0, **changes}
    more = {} if run_settings is None else {"run_settings": run_settings}
    async with Cluster(valkey, prefix, checkpoints=(tmp_path / "checkpoints").as_uri(), **changes) as cluster:
        await cluster.add(*names, **more)
        agent = cluster.agents[names[0]]
        await add(agent, counting)
        model = settled(await agent.online("counting", executors=executors, recovery=recovery))
        assert model.status == ("online" if len(names) > 1 else "degraded")
        try:
            yield cluster
        except BaseException:
            for entry in await agent.log(None, 200):
                print(f"{entry.time:.3f} {entry.node} {entry.kind}: {entry.text}")
            print(await view(cluster))
            raise


async def view(cluster):
    return await next(iter(cluster.agents.values())).model("counting")


async def executor(cluster, name="1.0"):
    return next(e for e in (await view(cluster)).executors if e.id == name)


async def protected(cluster):
    """The model, once all its executors could be lost again."""

    async def it():
        model = await view(cluster)
        return model if model.status == "online" else None

    return await until(it)


async def kinds(cluster):
    return [entry.kind for entry in await next(iter(cluster.agents.values())).log("counting", 200)]


@BOTH
@asynchronous
async def test_primaries_are_killed_one_after_the_other_and_nothing_is_lost_or_doubled(
    valkey, prefix, counting, tmp_path, recovery
):
    async with running(valkey, prefix, counting, tmp_path, recovery) as cluster:
        lines = Lines(cluster)
        for name in ("1.0", "0.0", "1.1"):
            async with lines.flowing():
                before = await executor(cluster, name)
                os.kill(before.pid, signal.SIGKILL)

                async def taken_over(name=name, before=before):
                    now = await executor(cluster, name)
                    return now.node != before.node and now.state == "running"

                await until(taken_over)
            model = await protected(cluster)
            assert all(len({r.node for r in e.replicas}) == 2 for e in model.executors)
        assert model.promotions >= 3
        assert (model.restarts, model.restores, model.keys_lost) == (0, 0, 0)
        said = await kinds(cluster)
        for kind in ("primary.lost", "executor.promoted", "executor.degraded", "standby.added", "standby.complete"):
            assert kind in said
        await offline(lines.agent, "counting")


@asynchronous
async def test_a_worker_that_stands_still_is_replaced(valkey, prefix, counting, tmp_path):
    async with running(valkey, prefix, counting, tmp_path, "active", silence=1.5) as cluster:
        lines = Lines(cluster)
        async with lines.flowing():
            before = await executor(cluster)
            os.kill(before.pid, signal.SIGSTOP)

            async def taken_over():
                return (await executor(cluster)).node != before.node

            await until(taken_over)
        await protected(cluster)
        assert any("says nothing" in e.text for e in await lines.agent.log("counting", 200))


@BOTH
@asynchronous
async def test_a_lost_standby_costs_nothing_and_is_replaced(valkey, prefix, counting, tmp_path, recovery):
    async with running(valkey, prefix, counting, tmp_path, recovery, executors=1) as cluster:
        lines = Lines(cluster)
        before = await executor(cluster)
        standby = before.replicas[1]
        assert standby.protects
        async with lines.flowing():
            os.kill(standby.pid, signal.SIGKILL)

            async def replaced():
                others = (await executor(cluster)).replicas[1:]
                return others and others[0].name != standby.name and others[0].protects

            await until(replaced)
        assert (await executor(cluster)).pid == before.pid
        assert "standby.lost" in await kinds(cluster)


@asynchronous
async def test_a_node_that_leaves_is_replaced(valkey, prefix, counting, tmp_path):
    async with running(valkey, prefix, counting, tmp_path, "passive") as cluster:
        lines = Lines(cluster)
        async with lines.flowing():
            await cluster.remove("b")
        model = await protected(cluster)
        assert {r.node for e in model.executors for r in e.replicas} == {"a", "c"}
        assert model.restores == 0


@BOTH
@asynchronous
async def test_when_primary_and_standby_are_gone_all_is_restored_from_the_last_checkpoint(
    valkey, prefix, counting, tmp_path, recovery
):
    async with running(
        valkey,
        prefix,
        counting,
        tmp_path,
        recovery,
        run_settings=RunSettings(metrics_interval=0.1, checkpoint_interval=0.2),
    ) as cluster:
        lines = Lines(cluster)
        async with lines.flowing():
            pass

        async def durable():
            checkpoint = (await view(cluster)).checkpoint
            return checkpoint is not None and checkpoint.number > 1

        await until(durable)
        found = await executor(cluster)
        for replica in found.replicas:
            os.kill(replica.pid, signal.SIGKILL)

        async def restored():
            model = await view(cluster)
            return model.restores and model.status == "online"

        await until(restored)
        for number in range(
            lines.sent
        ):  # a client that was not told repeats; what the checkpoint has is not taken twice
            await lines.push(number)
        await lines.counted()
        async with lines.flowing():
            pass


@asynchronous
async def test_without_a_checkpoint_it_has_failed_and_says_why(valkey, prefix, counting, tmp_path, monkeypatch):
    async def refuse(*_):
        raise Unavailable("no checkpoint today")

    monkeypatch.setattr(Parts, "take", refuse)
    async with running(valkey, prefix, counting, tmp_path, "active", executors=1) as cluster:
        lines = Lines(cluster)
        async with lines.flowing():
            pass
        for replica in (await executor(cluster)).replicas:
            os.kill(replica.pid, signal.SIGKILL)

        async def failed():
            model = await view(cluster)
            return model if model.status == "failed" else None

        model = await until(failed)
        assert "no durable checkpoint" in model.error
        assert "killed by SIGKILL" in model.error


@asynchronous
async def test_a_single_node_is_degraded_until_another_one_comes(valkey, prefix, counting, tmp_path):
    async with running(valkey, prefix, counting, tmp_path, "passive", names="a", executors=1) as cluster:
        model = await view(cluster)
        assert all(e.degraded and e.state == "running" for e in model.executors)
        assert "executor.degraded" in await kinds(cluster)
        lines = Lines(cluster)
        async with lines.flowing():
            await cluster.add("b")
        model = await protected(cluster)
        assert {r.node for e in model.executors for r in e.replicas[1:]} == {"b"}


@BOTH
@asynchronous
async def test_a_move_keeps_everything_and_what_cannot_be_moved_is_refused(
    valkey, prefix, counting, tmp_path, recovery
):
    async with running(valkey, prefix, counting, tmp_path, recovery, executors=1) as cluster:
        lines, agent = Lines(cluster), cluster.agents["b"]
        for name in ("1.0", "0.0"):
            before = await executor(cluster, name)
            free = ({"a", "b", "c"} - {r.node for r in before.replicas}).pop()
            async with lines.flowing():
                order = await agent.move("counting", name, free)
                assert order.done, order
            after = await executor(cluster, name)
            assert after.node == free
            assert after.moving_to == ""
            model = await protected(cluster)
            assert (model.promotions, model.restarts) == (0, 0)
        assert "executor.moved" in await kinds(cluster)
        here = await agent.move("counting", "1.0", (await executor(cluster)).node)
        assert here.done
        for wrong in (("counting", "7.0", "a"), ("counting", "1.0", "nowhere"), ("nobody", "1.0", "a")):
            with pytest.raises(NotFound):
                await agent.move(*wrong)
        await offline(agent, "counting")
        with pytest.raises(Conflict):
            await agent.move("counting", "1.0", "a")
