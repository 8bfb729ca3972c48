"""The pools of worker processes of a node: real processes, no cluster."""

import asyncio
import hashlib
import os
import signal
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from penstock.cluster.launcher.process import ProcessLauncher
from penstock.cluster.launcher.protocol import WorkerSpec
from penstock.cluster.verification import Verifier
from penstock.cluster.workers import Workers
from penstock.errors import FlowError, WorkerError
from penstock.model.environment import BASE, Environment, Environments
from penstock.settings import ClusterSettings
from penstock.worker.messages import Epoch, ExecutorId, Failed, Load, Loaded, Log, Message


class Events:
    """What is told about workers."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, Message]] = []
        self.gone: list[tuple[int, str]] = []
        self.changed = asyncio.Event()

    def on_message(self, worker: int, message: Message) -> None:
        self.messages.append((worker, message))
        self.changed.set()

    def on_gone(self, worker: int, reason: str) -> None:
        self.gone.append((worker, reason))
        self.changed.set()

    async def until(self, check: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not check():
                self.changed.clear()
                await self.changed.wait()


class Node:
    """Workers and what is told about them."""

    def __init__(self, workers: Workers, events: Events, data_dir: Path) -> None:
        self.workers, self.events, self.data_dir = workers, events, data_dir

    def pid(self, worker: int) -> int | None:
        handle = self.workers.handle(worker)
        return None if handle is None else handle.pid

    async def up(self, worker: int) -> int:
        async with asyncio.timeout(30):
            while (pid := self.pid(worker)) is None:
                await asyncio.sleep(0.01)
            return pid

    async def load(self, worker: int, target: str, name: str = "g/m") -> Message:
        self.workers.post(worker, Load(name, target, 0, Epoch(1, 1), [ExecutorId(0, 0)], {0: 1}))
        answers = (Loaded, Failed)
        await self.events.until(lambda: any(w == worker and isinstance(m, answers) for w, m in self.events.messages))
        return next(m for w, m in self.events.messages if w == worker and isinstance(m, answers))


def on_node(work: Callable[[Node], Awaitable[None]], warm: int = 1) -> None:
    async def main(data_dir: str) -> None:
        events = Events()
        settings = ClusterSettings(warm_workers=warm)
        spec = WorkerSpec(name="node", python=sys.executable, data_dir=data_dir)
        workers = Workers(ProcessLauncher(), spec, settings, events)
        try:
            await work(Node(workers, events, Path(data_dir)))
        finally:
            await workers.stop_all(1.0)
        assert workers.pids() == []
        assert os.listdir(data_dir) == []

    with tempfile.TemporaryDirectory() as data_dir:
        asyncio.run(main(data_dir))


@pytest.fixture
def other(tmp_path: Path) -> Environment:
    """Another interpreter: this one under another path, which marks its processes."""
    python = tmp_path / "other-python"
    python.write_text(f'#!/bin/sh\nOTHER=yes exec "{sys.executable}" "$@"\n')
    python.chmod(0o700)
    return Environment("other", str(python))


def is_other(pid: int) -> bool:
    try:
        return psutil.Process(pid).environ().get("OTHER") == "yes"
    except (psutil.NoSuchProcess, psutil.ZombieProcess):  # it has just ended
        return False


def test_a_worker_belongs_to_a_group_and_an_environment(other):
    async def work(node: Node) -> None:
        workers = node.workers
        base, isolated = workers.acquire("g"), workers.acquire("g", other)
        assert workers.groups() == {base: ("g", ""), isolated: ("g", "other")}
        assert not is_other(await node.up(base))
        assert is_other(await node.up(isolated))
        workers.release(base)
        assert workers.groups() == {isolated: ("g", "other")}

    on_node(work)


async def until_refilled(workers: Workers, number: int) -> None:
    """As the node does it: every now and then."""
    async with asyncio.timeout(20):
        while workers.warm() < number:
            workers.refill()
            await asyncio.sleep(0.02)


def test_warm_workers_are_of_the_base_environment_only(other):
    async def work(node: Node) -> None:
        workers = node.workers
        workers.refill()
        assert workers.warm() == 2
        isolated = workers.acquire("g", other)
        assert workers.warm() == 2, "none of the warm ones was of use"
        first = workers.acquire("g")
        assert first < isolated, "it was warm"
        workers.refill()
        assert workers.warm() == 1, "what goes online just now comes first"
        await until_refilled(workers, 2)

    on_node(work, warm=2)


def test_a_reserved_worker_is_up_and_is_taken_first(other):
    async def work(node: Node) -> None:
        workers = node.workers
        await workers.reserve("tx1", "g", other)
        await workers.reserve("tx1", "g", other)  # asked again: nothing more
        [pid] = workers.pids()
        assert is_other(pid)
        assert workers.groups() == {}, "nobody else sees it"
        elsewhere = workers.acquire("h", other)
        assert node.pid(elsewhere) is None, "a new one: the reserved one is for another group"
        taken = workers.acquire("g", other)
        assert node.pid(taken) == pid
        workers.release_reserved("tx1")
        assert workers.groups() == {elsewhere: ("h", "other"), taken: ("g", "other")}
        assert node.events.gone == []

    on_node(work, warm=0)


def test_what_nobody_took_is_stopped_or_warm_again(other):
    async def work(node: Node) -> None:
        workers = node.workers
        workers.refill()
        await asyncio.gather(workers.reserve("tx1", "g"), workers.reserve("tx1", "g", other))
        await until_refilled(workers, 1)
        workers.release_reserved("tx0")
        before = set(workers.pids())
        workers.release_reserved("tx1")
        assert workers.warm() == 1, "one of the two is enough"
        async with asyncio.timeout(20):
            while len(workers.pids()) != 1 or any(is_other(pid) for pid in workers.pids()):
                await asyncio.sleep(0.02)
        assert len(before) >= 2
        assert node.events.gone == []

    on_node(work)


def test_a_worker_that_does_not_come_up_has_last_words(tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such module: tiny >&2\nexit 3\n")
    broken.chmod(0o700)

    async def work(node: Node) -> None:
        for environment in (Environment("b", str(broken)), Environment("m", str(tmp_path / "missing"))):
            with pytest.raises(WorkerError) as caught:
                await node.workers.reserve("tx", "g", environment)
            assert "no such module: tiny" in str(caught.value) or "could not be started" in str(caught.value)
        assert node.workers.pids() == []
        assert node.events.gone == []
        worker = node.workers.acquire("g", Environment("b", str(broken)))
        await node.events.until(lambda: node.events.gone)
        assert node.events.gone[0][0] == worker
        assert "no such module: tiny" in node.events.gone[0][1]

    on_node(work, warm=0)


def test_a_cancelled_reservation_leaves_nothing(other):
    async def work(node: Node) -> None:
        reserving = asyncio.create_task(node.workers.reserve("tx", "g", other))
        await asyncio.sleep(0.05)
        reserving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reserving
        async with asyncio.timeout(20):
            while node.workers._workers:
                await asyncio.sleep(0.02)

    on_node(work, warm=0)


def test_a_reserved_worker_that_dies_is_replaced(other):
    async def work(node: Node) -> None:
        await node.workers.reserve("tx", "g", other)
        [pid] = node.workers.pids()
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while pid in node.workers.pids():
                await asyncio.sleep(0.02)
        assert node.events.gone == []
        assert await node.up(node.workers.acquire("g", other)) != pid

    on_node(work, warm=0)


def test_stop_all_ends_a_reservation_that_waits(tmp_path):
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o700)

    async def work(node: Node) -> None:
        reserving = asyncio.create_task(node.workers.reserve("tx", "g", Environment("s", str(slow))))
        await asyncio.sleep(0.1)
        await node.workers.stop_all(0.1)
        with pytest.raises(WorkerError):
            await reserving

    on_node(work, warm=0)


MODEL = """
import subprocess, sys, time
import penstock as ps
print("it is here")
subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
flow = ps.Flow("m")
flow.source("n", ps.sequence(rate=10)).sink("out", ps.null())
"""


def test_what_a_model_prints_comes_as_messages(tmp_path):
    target = tmp_path / "m.py"
    target.write_text(textwrap.dedent(MODEL))

    async def work(node: Node) -> None:
        worker = node.workers.acquire("g")
        answer = await node.load(worker, str(target))
        assert isinstance(answer, Loaded), answer
        assert (worker, Log("g/m", "info", "it is here")) in node.events.messages

    on_node(work)


@pytest.mark.parametrize("how", ["release", "kill"])
def test_processes_that_a_model_has_started_end_with_the_worker(tmp_path, how):
    target = tmp_path / "m.py"
    target.write_text(textwrap.dedent(MODEL))

    async def work(node: Node) -> None:
        worker = node.workers.acquire("g")
        await node.load(worker, str(target))
        pid = node.pid(worker)
        [child] = psutil.Process(pid).children()
        getattr(node.workers, how)(worker)
        async with asyncio.timeout(20):
            while psutil.pid_exists(pid) or (child.is_running() and child.status() != psutil.STATUS_ZOMBIE):
                await asyncio.sleep(0.02)
        assert [w for w, _ in node.events.gone] == ([worker] if how == "kill" else [])

    on_node(work)


def test_killed_and_released_at_once(other):
    async def work(node: Node) -> None:
        for environment in (BASE, other):
            worker = node.workers.acquire("g", environment)
            await node.up(worker)
            node.workers.kill(worker)
            node.workers.release(worker)
            async with asyncio.timeout(20):
                while node.workers._workers:
                    await asyncio.sleep(0.02)
        assert node.events.gone == []

    on_node(work, warm=0)


def test_a_stuck_worker_with_much_unsent_is_killed(tmp_path):
    target = tmp_path / "m.py"
    target.write_text("import time\ntime.sleep(600)\n")

    async def work(node: Node) -> None:
        worker = node.workers.acquire("g")
        node.workers.post(worker, Load("g/m", str(target), 0, Epoch(1, 1), [ExecutorId(0, 0)], {0: 1}))
        await node.up(worker)
        filler = Load("g/n", "x" * 2**20, 1, Epoch(1, 1), [], {})
        for _ in range(8):
            node.workers.post(worker, filler)
        await asyncio.sleep(0.2)
        node.workers.kill(worker)
        await node.events.until(lambda: node.events.gone)
        assert "SIGKILL" in node.events.gone[0][1]

    on_node(work)


def test_nothing_grows_when_workers_come_and_go(other):
    def numbers(node: Node) -> tuple[int, int, int]:
        me = psutil.Process()
        return me.num_fds(), len(me.children(recursive=True)), len(os.listdir(node.data_dir))

    async def cycle(node: Node, count: int) -> None:
        for number in range(count):
            environment = other if number % 3 == 0 else BASE
            if number % 2:
                await node.workers.reserve("tx", "g", environment)
            worker = node.workers.acquire("g", environment)
            if number % 4:
                await node.up(worker)
            node.workers.release(worker, grace=1.0)
        async with asyncio.timeout(60):
            while len(node.workers._workers) != 1 or len(node.workers.pids()) != 1 or len(node.workers._tasks) != 1:
                node.workers.refill()
                await asyncio.sleep(0.02)

    async def work(node: Node) -> None:
        node.workers.refill()
        await cycle(node, 4)
        before = numbers(node)
        await cycle(node, 12)
        assert numbers(node) == before
        assert len(node.workers._tasks) == 1, "the one that listens to the warm worker"

    on_node(work)


def test_a_model_in_an_environment_of_its_own(tmp_path, monkeypatch):
    """Made by uv from a wheel, verified, and run in a worker with its interpreter."""
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    lock = tiny_wheel(tmp_path / "wheels")
    target = tmp_path / "uses.py"
    target.write_text(
        "import tiny, penstock as ps\nprint('tiny is', tiny.version)\nflow = ps.Flow('uses')\n"
        "flow.source('n', ps.sequence(rate=10)).sink('out', ps.null())\n"
        "def self_test():\n    assert tiny.version == 7\n"
    )

    async def work(node: Node) -> None:
        environment = await Environments(tmp_path / "environments").ensure(lock, tmp_path / "wheels")
        verifier = Verifier()
        try:
            with pytest.raises(FlowError, match="No module named 'tiny'"):
                await verifier.verify(str(target))
            verified = await verifier.verify(str(target), environment=environment)
        finally:
            await verifier.close()
        assert verified.topology.flow == "uses"
        await node.workers.reserve("tx", "g", environment)
        worker = node.workers.acquire("g", environment)
        answer = await node.load(worker, str(target))
        assert isinstance(answer, Loaded), answer
        assert (worker, Log("g/m", "info", "tiny is 7")) in node.events.messages

    on_node(work)


def tiny_wheel(folder: Path) -> str:
    """Write a wheel; the line that locks it."""
    folder.mkdir()
    path = folder / "tiny-7-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("tiny.py", "version = 7\n")
        out.writestr("tiny-7.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 7\n")
        out.writestr("tiny-7.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr("tiny-7.dist-info/RECORD", "tiny.py,,\ntiny-7.dist-info/METADATA,,\ntiny-7.dist-info/WHEEL,,\n")
    return f"tiny==7 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def test_a_worker_gets_no_secrets_of_the_node(other, monkeypatch):
    monkeypatch.setenv("PENSTOCK_TOKEN", "t0p")
    monkeypatch.setenv("PENSTOCK_REDIS", "redis://localhost")
    monkeypatch.setenv("BROKER", "redis://user:hidden@localhost:6379/0")
    monkeypatch.setenv("DB_PASSWORD", "hidden")
    monkeypatch.setenv("REGION", "north")

    async def work(node: Node) -> None:
        for environment in (BASE, other):
            found = psutil.Process(await node.up(node.workers.acquire("g", environment))).environ()
            assert found["REGION"] == "north"
            assert not {"PENSTOCK_TOKEN", "PENSTOCK_REDIS", "BROKER", "DB_PASSWORD"} & found.keys()

    on_node(work, warm=0)


def test_a_reservation_that_comes_while_all_are_stopped_does_not_hold_that_up(other):
    async def work(node: Node) -> None:
        await node.workers.reserve("tx", "g", other)
        stopping = asyncio.create_task(node.workers.stop_all(1.0))
        await asyncio.sleep(0)
        with pytest.raises(WorkerError, match="are being stopped"):
            await node.workers.reserve("tx-2", "g", other)
        async with asyncio.timeout(10):
            await stopping
        await node.workers.reserve("tx-3", "g", other)

    on_node(work, warm=0)
