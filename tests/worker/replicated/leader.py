"""A leader and its agents in one asyncio loop, over real worker processes: just enough to try replicated executors.

It loads replicas, connects them, applies what machines report to the record with the real functions, and does what a
test asks for: kill, pause, promote, add a standby, hand over, checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from tests.worker.replicated.links import Link

from penstock.cluster.launcher.process import ProcessLauncher, ProcessWorker
from penstock.cluster.launcher.protocol import WorkerSpec
from penstock.exchange.replica import assignment as record
from penstock.exchange.replica.assignment import Assignment, Mode
from penstock.exchange.replica.messages import Caught, Complete, Diverged, Refused
from penstock.exchange.split.messages import Prepared, Settled, Staged
from penstock.exchange.split.routing import Routing
from penstock.settings import Replication, RunSettings
from penstock.worker.messages import (
    Alarmed,
    Barrier,
    Checkpointed,
    CheckpointFailed,
    Committed,
    Connect,
    Connected,
    Epoch,
    ExecutorId,
    Failed,
    Finished,
    Handover,
    Load,
    Loaded,
    Lookup,
    Message,
    Metrics,
    Promoted,
    Push,
    Release,
    Released,
    ReplicaLoad,
    Reply,
    Reported,
    Retired,
    Running,
    Start,
)
from penstock.worker.store import CheckpointStore

MODEL, NUMBER = "default/tried", 7


@dataclass
class Seat:
    name: str
    worker: int
    """Index among the leader's workers."""


@dataclass
class Executor:
    record: Assignment
    seats: dict[str, Seat] = field(default_factory=dict)
    caught: bool = False


class Leader:
    """See the module. `plan`: executor -> (worker of the primary, workers of standbys)."""

    def __init__(
        self,
        target: str,
        counts: dict[int, int],
        plan: dict[str, tuple[int, list[int]]],
        mode: Mode | None,
        *,
        settings: RunSettings | None = None,
        replication: Replication | None = None,
        checkpoint_url: str | None = None,
        restore: int | None = None,
        links: bool = False,
    ) -> None:
        self.target, self.counts, self.plan, self.mode = target, counts, plan, mode
        self.settings = settings or RunSettings(metrics_interval=0.1)
        self.replication = replication or Replication()
        self.checkpoint_url = checkpoint_url
        self.checkpoint = self.restore = restore
        self.links: list[Link] | None = [] if links else None
        """With TCP between the workers: the way to each."""
        self._ways: list[str] = []
        self.workers: list[ProcessWorker] = []
        self.alive: list[bool] = []
        self.executors: dict[str, Executor] = {}
        self.said: list[tuple[int, Message]] = []
        self.metrics: dict[int, Metrics] = {}
        self.changed = asyncio.Event()
        self.parts: dict[int, set[str]] = {}
        self.failures: list[Failed] = []
        self.routings: dict[int, Routing] = {}
        self.births: dict[str, int] = {}
        """Of executors that came later."""
        self.expected_failures = False
        self.loaded_at: dict[int, int] = {}
        self._counter = 10
        self._requests = 0
        self._replies: dict[int, asyncio.Future[Reply]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.automatic = True
        """Promote and protect as a real leader does."""

    # ---- life -------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Leader:
        self.directory = tempfile.mkdtemp(prefix="ps-")
        count = 1 + max(w for primary, others in self.plan.values() for w in (primary, *others))
        for _ in range(count):
            await self.launch()
        for name, (primary, others) in self.plan.items():
            names = [self._name() for _ in range(1 + len(others))]
            first: Assignment | None = record.first(names[0], (1, self._count()))
            for standby in names[1:]:
                assert first is not None
                assert self.mode is not None
                first = record.with_standby(first, standby, self.mode)
            assert first is not None
            seats = {n: Seat(n, w) for n, w in zip(names, (primary, *others), strict=True)}
            self.executors[name] = Executor(first, seats)
        for worker in range(count):
            await self._load(worker)
        await self.until(lambda: self.count(Loaded) == count, "loaded")
        await self.connect()
        await self.until(lambda: self.count(Connected) == count, "connected")
        for worker in range(count):
            await self.workers[worker].send(Start(MODEL))
        await self.until(lambda: self.count(Running) == count, "running")
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGCONT)
        await asyncio.gather(*(worker.stop(1.0) for worker in self.workers))
        for link in self.links or ():
            await link.stop()
        import shutil

        shutil.rmtree(self.directory, ignore_errors=True)
        if not self.expected_failures:
            assert not self.failures, self.failures[0].trace or self.failures[0].error

    async def launch(self) -> int:
        bind = None if self.links is None else "127.0.0.1"
        spec = WorkerSpec(name=f"w{len(self.workers)}", python=sys.executable, data_dir=self.directory, bind=bind)
        worker = await ProcessLauncher().start(spec, 30.0)
        index = len(self.workers)
        self.workers.append(worker)
        self.alive.append(True)
        if self.links is not None:
            link = Link("127.0.0.1", int(worker.endpoint.rpartition(":")[2]), seed=index)
            self.links.append(link)
            self._ways.append(await link.start())
        self._tasks.append(asyncio.create_task(self._listen(index, worker)))
        return index

    def _name(self) -> str:
        return f"r{self._count()}"

    def _count(self) -> int:
        self._counter += 1
        return self._counter

    async def _load(self, worker: int, migrate_from: str | None = None, target: str | None = None) -> None:
        mine = {
            name: seat
            for name, executor in self.executors.items()
            for seat in executor.seats.values()
            if seat.worker == worker
        }
        replicas = {n: ReplicaLoad(s.name, self.executors[n].record, migrate_from) for n, s in mine.items()}
        await self.workers[worker].send(
            Load(
                model=MODEL, target=target or self.target, number=NUMBER, epoch=Epoch(1, self._count()),
                executors=sorted(identity(n) for n in mine), counts=self.counts, settings=self.settings,
                replicas=replicas, replication=self.replication, checkpoint_url=self.checkpoint_url,
                restore=self.restore, routings=self.routings, members=self.members(),
            )
        )  # fmt: skip

    def members(self) -> dict[str, int]:
        return {name: self.births.get(name, 0) for name in self.executors} if self.routings else {}

    async def connect(self) -> None:
        endpoints, replicas, records = {}, {}, {}
        for name, executor in self.executors.items():
            records[name] = executor.record
            for seat in executor.seats.values():
                replicas[seat.name] = self.endpoint(seat.worker)
            endpoints[name] = replicas.get(executor.record.primary, "")
        keys = {self.endpoint(i): w.server_key for i, w in enumerate(self.workers) if w.server_key and self.alive[i]}
        message = Connect(
            MODEL, endpoints, {}, server_keys=keys, records=records, replicas=replicas, checkpoint=self.checkpoint
        )
        message.routings, message.members = self.routings, self.members()
        for index, worker in enumerate(self.workers):
            if self.alive[index]:
                with contextlib.suppress(Exception):
                    await worker.send(message)

    # ---- hearing ----------------------------------------------------------------------------------------------------

    async def _listen(self, index: int, worker: ProcessWorker) -> None:
        async for message in worker.messages():
            if isinstance(message, Reply):
                self._replies.pop(message.id).set_result(message)
                continue
            if isinstance(message, Metrics):
                self.metrics[index] = message
            else:
                self.said.append((index, message))
            if isinstance(message, Failed):
                self.failures.append(message)
            if isinstance(message, Checkpointed):
                self.parts.setdefault(message.checkpoint, set()).add(str(message.executor))
            if isinstance(message, Retired):
                await worker.send(Release(MODEL, [message.executor]))
            if isinstance(message, Reported) and self.automatic:
                await self._reported(message)
            self.changed.set()
        self.alive[index] = False
        if self.automatic:
            await self._lost(index)
        self.changed.set()

    async def _reported(self, message: Reported) -> None:
        executor, report = self.executors.get(str(message.executor)), message.report
        if isinstance(report, Prepared | Staged | Settled):
            await self.shifted(message.executor.stage, report)
            return
        if executor is None:
            return
        new: Assignment | None = None
        match report:
            case Complete():
                new = record.protected(executor.record, report.standby, report.epoch)
            case Caught():
                if report.epoch == executor.record.since:
                    new = record.handed_over(executor.record, report.standby)
                    executor.caught = True
            case Diverged():
                new = record.unprotected(executor.record, report.standby)
            case Refused():
                raise AssertionError(report.reason)
        if new is not None:
            executor.record = new
            await self.connect()

    async def shifted(self, stage: int, report: Prepared | Staged | Settled) -> None:
        raise AssertionError(report)

    async def _lost(self, worker: int) -> None:
        for executor in self.executors.values():
            for seat in [seat for seat in executor.seats.values() if seat.worker == worker]:
                self.lose(executor, seat)
        await self.connect()

    def lose(self, executor: Executor, seat: Seat) -> None:
        if executor.record.primary == seat.name:
            for name in sorted(executor.record.protecting):
                promoted = record.promoted(executor.record, name)
                assert promoted is not None
                executor.record = promoted
                break
        else:
            executor.record = record.without_standby(executor.record, seat.name) or executor.record
        executor.seats.pop(seat.name, None)

    # ---- doing ------------------------------------------------------------------------------------------------------

    def kill(self, worker: int) -> None:
        os.kill(self.workers[worker].pid, signal.SIGKILL)

    def pause(self, worker: int) -> None:
        os.kill(self.workers[worker].pid, signal.SIGSTOP)

    def resume(self, worker: int) -> None:
        os.kill(self.workers[worker].pid, signal.SIGCONT)

    def endpoint(self, worker: int) -> str:
        """Where others reach a worker."""
        return self._ways[worker] if self._ways else self.workers[worker].endpoint

    def worker_of(self, name: str) -> int:
        executor = self.executors[name]
        return executor.seats[executor.record.primary].worker

    async def promote(self, name: str) -> None:
        """As if the primary had been silent for too long."""
        executor = self.executors[name]
        old = executor.record.primary
        new = record.promoted(executor.record, min(executor.record.protecting))
        assert new is not None
        executor.record = new
        executor.seats.pop(old, None)
        await self.connect()

    async def add_standby(
        self,
        name: str,
        mode: Mode,
        *,
        foreign: bool = False,
        target: str | None = None,
        migrate_from: str | None = None,
    ) -> str:
        worker = await self.launch()
        executor = self.executors[name]
        seat = Seat(self._name(), worker)
        new = record.with_standby(executor.record, seat.name, mode, foreign=foreign)
        assert new is not None
        executor.record, executor.seats[seat.name] = new, seat
        loaded, connected = self.count(Loaded), self.count(Connected)
        await self._load(worker, migrate_from, target)
        await self.until(lambda: self.count(Loaded) > loaded, "a standby loaded")
        await self.connect()
        await self.until(
            lambda: any(w == worker and isinstance(m, Connected) for w, m in self.said), f"connected {connected}"
        )
        await self.workers[worker].send(Start(MODEL))
        return seat.name

    async def hand_over(self, name: str, standby: str, seconds: float = 30) -> None:
        executor = self.executors[name]
        executor.caught = False
        message = Handover(MODEL, identity(name), standby)
        async with asyncio.timeout(seconds):
            while not executor.caught:
                await self.workers[self.worker_of(name)].send(message)
                self.changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await self.changed.wait()

    async def durable(self, number: int, seconds: float = 20, unless: Callable[[], bool] = lambda: False) -> None:
        """Take a durable checkpoint, and commit it; not if `unless` comes true on the way."""
        for index, worker in enumerate(self.workers):
            if self.alive[index]:
                await worker.send(Barrier(MODEL, number))
        whole = set(self.executors)
        what = f"checkpoint {number} of {sorted(whole)}, have {self.parts}"
        await self.until(lambda: self.parts.get(number) == whole or unless(), what, seconds)
        if unless():
            return
        assert self.checkpoint_url is not None
        store = CheckpointStore(self.checkpoint_url, self._flow())
        store.write_manifest(
            number,
            {
                "flow": self._flow(), "checkpoint": number, "steps": {},
                "counts": {str(s): c for s, c in self.counts.items()}, "parts": dict.fromkeys(self.executors, 0),
            },
        )  # fmt: skip
        self.checkpoint = number
        for index, worker in enumerate(self.workers):
            if self.alive[index]:
                await worker.send(Committed(MODEL, number))

    def _flow(self) -> str:
        return next(m.topology.flow for _, m in self.said if isinstance(m, Loaded))

    async def ask(self, worker: int, message: Lookup | Push) -> Reply:
        self._requests += 1
        message.id = self._requests
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._replies[message.id] = future
        await self.workers[worker].send(message)
        return await future

    # ---- waiting ----------------------------------------------------------------------------------------------------

    def count(self, kind: type[Message]) -> int:
        return sum(isinstance(message, kind) for _, message in self.said)

    def alarms(self) -> list[str]:
        return [message.text for _, message in self.said if isinstance(message, Alarmed)]

    def pauses(self) -> list[float]:
        return [message.pause for _, message in self.said if isinstance(message, Promoted)]

    def protected(self, *names: str) -> bool:
        return all(self.executors[name].record.protecting for name in names or self.executors)

    async def until(self, condition: Callable[[], Any], what: str, seconds: float = 30) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    assert self.expected_failures or not self.failures, self.failures[0].trace or self.failures[0].error
                    self.changed.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.05):
                            await self.changed.wait()
        except TimeoutError:
            raise AssertionError(f"not within {seconds} s: {what}; {self.describe()}") from None

    def describe(self) -> str:
        rows = [
            f"{e.executor} {e.role} in={e.records_in} out={e.records_out} queue={e.queue} {e.behind} {e.counters}"
            for metrics in self.metrics.values()
            for e in metrics.executors
        ]
        failed = [m.error for _, m in self.said if isinstance(m, Failed | CheckpointFailed)]
        kinds = msgspec.json.encode([type(m).__name__ for _, m in self.said]).decode()
        records = {name: e.record for name, e in self.executors.items()}
        return "\n".join([str(self.parts), *rows, *failed, *self.alarms(), kinds[-300:], str(records)])

    def finished(self) -> bool:
        return {str(m.executor) for _, m in self.said if isinstance(m, Finished)} == set(self.executors)

    def releases(self) -> int:
        return self.count(Released)


def identity(name: str) -> ExecutorId:
    stage, _, index = name.partition(".")
    return ExecutorId(int(stage), int(index))


@contextlib.asynccontextmanager
async def led(*arguments: Any, **options: Any) -> AsyncIterator[Leader]:
    async with Leader(*arguments, **options) as leader:
        yield leader
