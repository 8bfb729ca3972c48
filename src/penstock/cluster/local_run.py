"""`penstock run`: one flow on this machine, without a cluster. Workers are child processes; no user code runs here.

Checkpoints: every `checkpoint_interval` the sources start a barrier; when every executor has written its part, the
manifest is written, and only then sinks make their records visible. A run that is started again with the same
directory goes on from the last manifest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil

from penstock.cluster.launcher.process import ProcessLauncher, ProcessWorker
from penstock.cluster.launcher.protocol import WorkerSpec
from penstock.cluster.trial import describe
from penstock.errors import CheckpointError, PenstockError, UsageError, WorkerError
from penstock.exchange.checkpoint import CheckpointCoordinator
from penstock.flow.graph import Topology
from penstock.placement.even import even
from penstock.placement.plan import Problem, WorkerSlot, executor_keys, stage_counts
from penstock.settings import RunSettings
from penstock.worker.messages import (
    Barrier,
    Checkpointed,
    CheckpointFailed,
    Collected,
    Committed,
    Connect,
    Connected,
    Drain,
    Epoch,
    ExecutorId,
    ExecutorMetrics,
    Failed,
    Finished,
    Load,
    Loaded,
    Log,
    Message,
    Metrics,
    Running,
    Start,
    Stop,
    Stopped,
)
from penstock.worker.store import CheckpointStore, TakenOver

_FAILED_CHECKPOINTS = 3
"""So many checkpoints that fail in a row end the run."""
_STEP_TIMEOUT = 120.0
"""Seconds that workers may take to load, connect or stop."""
_GRACE, _GRACE_AT_ONCE = 5.0, 0.5
"""Seconds that workers may take to exit; the second when the run is cancelled."""
_RATE_WINDOW = 2.0
"""Seconds over which the rate of the progress is taken: several reports of every worker."""
_DATA_DIR = "penstock-run-"
"""Directories of a run's sockets are named with this and the run's process id."""


class RunRequest(msgspec.Struct, kw_only=True):
    """What to run, and how."""

    target: str
    """A file or directory, optionally `path:object`."""
    workers: int = 1
    executors: int | None = None
    """Executors per stage; `None`: what the flow says."""
    config: dict[str, Any] = {}
    checkpoint_url: str | None = None
    settings: RunSettings = RunSettings()


class Progress(msgspec.Struct, kw_only=True):
    """How far a run is."""

    records: int
    """Read by all sources."""
    rate: float
    """Records per second over the last two seconds."""
    share: float | None
    """Of a bounded input, 0 to 1."""
    lag: int | None
    checkpoint: int | None
    """The last complete checkpoint."""
    executors: list[ExecutorMetrics]
    metrics: list[Metrics]
    elapsed: float


class RunResult(msgspec.Struct, kw_only=True):
    """What a run came to."""

    flow: str
    collected: dict[str, list[Any]]
    """`collect` sink -> records, as JSON values."""
    records: int
    elapsed: float
    """Seconds from the first record to the end."""
    counters: dict[str, int]
    metrics: list[Metrics]
    checkpoint: int | None
    restored: int | None
    """The checkpoint that the run went on from."""
    drained: bool = False
    """Whether it was stopped before its input ended."""


async def run(
    request: RunRequest,
    on_progress: Callable[[Progress], None] | None = None,
    stop: asyncio.Event | None = None,
) -> RunResult:
    """Run a flow to its end, or until `stop` is set (then it drains). Raises `UsageError` for what cannot be run,
    `StepError`-like `PenstockError`s of the flow, and `WorkerError` when a worker dies."""
    if request.workers < 1:
        raise UsageError(f"a run needs at least 1 worker, not {request.workers}")
    topology = await describe(request.target, request.config)
    remove_stale()
    data_dir = tempfile.mkdtemp(prefix=f"{_DATA_DIR}{os.getpid()}-")
    grace = _GRACE
    try:
        attempt = _Run(request, topology, data_dir, on_progress or (lambda progress: None), stop or asyncio.Event())
        try:
            return await attempt.run()
        except asyncio.CancelledError:
            grace = _GRACE_AT_ONCE
            raise
        finally:
            await attempt.release(grace)
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


def remove_stale() -> None:
    """Remove the socket directories that killed runs of this user left."""
    for path in Path(tempfile.gettempdir()).glob(f"{_DATA_DIR}*"):
        pid = path.name.removeprefix(_DATA_DIR).partition("-")[0]
        with contextlib.suppress(OSError):
            if pid.isdecimal() and not psutil.pid_exists(int(pid)) and path.stat().st_uid == os.getuid():
                shutil.rmtree(path, ignore_errors=True)


class _Run:
    """One attempt, from starting workers to the result."""

    def __init__(
        self,
        request: RunRequest,
        topology: Topology,
        data_dir: str,
        on_progress: Callable[[Progress], None],
        stop: asyncio.Event,
    ) -> None:
        self.request, self.topology, self.data_dir = request, topology, data_dir
        self.on_progress, self.stop = on_progress, stop
        self.counts = stage_counts(topology, request.executors)
        keys = executor_keys(topology.flow, self.counts)
        slots = tuple(WorkerSlot("local", slot) for slot in range(min(request.workers, len(keys))))
        placement = even(Problem(executors=keys, workers=slots))
        self.placement = {ExecutorId(key.stage, key.index): slot.slot for key, slot in placement.workers.items()}
        self.workers: list[ProcessWorker] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.inbox: asyncio.Queue[tuple[int, Message | None]] = asyncio.Queue()
        self.metrics: dict[int, Metrics] = {}
        self.collected: dict[str, list[Any]] = {}
        self.finished: set[ExecutorId] = set()
        self.restored: int | None = None
        self.complete: int | None = None
        self.last: int | None = None
        """The checkpoint after which the run is over."""
        self.failures = 0
        """Checkpoints that failed in a row."""
        self.store: CheckpointStore | None = None
        self.coordinator: CheckpointCoordinator[ExecutorId] | None = None
        self.started = self.told = time.monotonic()
        self.told_records = 0
        self.measured = self.started
        """When the latest metrics came."""
        self.samples: deque[tuple[float, int]] = deque([(self.started, 0)])
        """When metrics came, and the records that had been read by then."""

    @property
    def model(self) -> str:
        return self.topology.flow

    async def run(self) -> RunResult:
        if self.request.checkpoint_url is not None:
            self.store = CheckpointStore(self.request.checkpoint_url, self.model)
            await asyncio.to_thread(self.store.claim)
            self._prepare_checkpoints(self.store)
        launcher = ProcessLauncher()
        count = max(self.placement.values()) + 1
        specs = [
            WorkerSpec(name=f"{self.model}-{slot}", python=sys.executable, data_dir=self.data_dir, secrets=True)
            for slot in range(count)
        ]
        starts = [asyncio.create_task(launcher.start(spec)) for spec in specs]
        try:
            await asyncio.gather(*starts)
        finally:
            await asyncio.gather(*starts, return_exceptions=True)
            self.workers = [start.result() for start in starts if not start.cancelled() and start.exception() is None]
        self.tasks = [asyncio.create_task(self._listen(slot)) for slot in range(len(self.workers))]
        await self._load()
        drained = await self._until_finished()
        await self._tell(Stop(self.model))
        await self._await_all(Stopped)
        self._progress()
        return self._result(drained)

    def _prepare_checkpoints(self, store: CheckpointStore) -> None:
        found = store.latest()
        if found is not None:
            self.restored, manifest = found
            self.complete = self.restored
            known, present = manifest["steps"], _steps(self.topology)
            if known != present:
                raise CheckpointError(
                    f"the checkpoint in {self.request.checkpoint_url} is of another flow: its steps are {known}, "
                    f"this flow's are {present}",
                    remedy="give another --checkpoint directory, or bring the old steps back",
                )
        self.coordinator = CheckpointCoordinator(
            self.placement, timeout=self.request.settings.checkpoint_timeout, after=store.next_number() - 1
        )

    async def _load(self) -> None:
        endpoints = {str(e): self.workers[slot].endpoint for e, slot in self.placement.items()}
        epoch = Epoch(0, (self.restored or 0) + 1)
        for slot, worker in enumerate(self.workers):
            await worker.send(
                Load(
                    model=self.model,
                    target=self.request.target,
                    number=0,
                    epoch=epoch,
                    executors=sorted(e for e, s in self.placement.items() if s == slot),
                    counts=self.counts,
                    config=self.request.config,
                    settings=self.request.settings,
                    checkpoint_url=self.request.checkpoint_url,
                    restore=self.restored,
                )
            )
        await self._await_all(Loaded)
        await self._tell(Connect(self.model, endpoints, dict.fromkeys(endpoints, epoch)))
        await self._await_all(Connected)
        await self._tell(Start(self.model))
        await self._await_all(Running)
        self.started = self.told = self.measured = time.monotonic()
        self.samples = deque([(self.started, 0)])

    async def _until_finished(self) -> bool:
        """Serve until every executor has finished and the last checkpoint is complete; whether `stop` ended it."""
        next_checkpoint = time.monotonic() + self.request.settings.checkpoint_interval
        draining = False
        while True:
            await self._serve(0.1)
            now = time.monotonic()
            if now - self.told >= 0.25:
                self._progress()
            if self.stop.is_set() and not draining:
                draining = True
                await self._tell(Drain(self.model, finish=self.coordinator is None))
            ended = len(self.finished) == len(self.placement)
            if self.coordinator is None:
                if ended:
                    return draining
                continue
            if (abandoned := self.coordinator.on_time(now)) is not None:
                waiting = ", ".join(map(str, abandoned.missing))
                await self._given_up(abandoned.number, f"{abandoned.reason}; executors {waiting} did not report")
            if self.last is not None and self.complete is not None and self.complete >= self.last:
                return draining
            if (ended or draining or now >= next_checkpoint) and self.last is None:
                number = self.coordinator.begin(now)
                if number is not None:
                    next_checkpoint = now + self.request.settings.checkpoint_interval
                    if ended or draining:
                        self.last = number
                    await self._tell(Barrier(self.model, number))

    async def _serve(self, timeout: float) -> None:
        """Take messages until there is none for the moment, but wait at most `timeout` seconds for the first."""
        try:
            async with asyncio.timeout(timeout):
                slot, message = await self.inbox.get()
        except TimeoutError:
            return
        await self._take(slot, message)
        while not self.inbox.empty():
            await self._take(*self.inbox.get_nowait())

    async def _take(self, slot: int, message: Message | None) -> None:
        match message:
            case None:
                status = await self.workers[slot].stop(grace=1.0)
                raise WorkerError(
                    f"worker {slot} (pid {self.workers[slot].pid}) died with status {status}",
                    remedy="run again with the same --checkpoint to go on" if self.store else "run again; "
                    "with --checkpoint DIR a run goes on where it was",
                )  # fmt: skip
            case Failed():
                raise PenstockError(message.error)
            case Metrics():
                self.metrics[slot], self.measured = message, time.monotonic()
            case Collected():
                self.collected.setdefault(message.step, []).extend(message.records)
            case Finished():
                self.finished.add(message.executor)
            case Checkpointed():
                await self._checkpointed(message)
            case CheckpointFailed():
                await self._checkpoint_failed(message)
            case Log():
                print(message.text, file=sys.stderr)  # noqa: T201 - the run's own log
            case _:
                pass

    async def _checkpointed(self, message: Checkpointed) -> None:
        assert self.coordinator is not None
        assert self.store is not None
        complete = self.coordinator.on_part(message.executor, message.checkpoint, message.bytes)
        if complete is None:
            return
        manifest = {
            "flow": self.model,
            "checkpoint": complete.number,
            "steps": _steps(self.topology),
            "counts": {str(stage): count for stage, count in self.counts.items()},
            "parts": {str(executor): part.info for executor, part in complete.parts.items()},
        }
        try:
            await asyncio.to_thread(self.store.write_manifest, complete.number, manifest)
        except TakenOver:
            raise
        except CheckpointError as error:
            await self._given_up(complete.number, str(error))
            return
        self.complete, self.failures = complete.number, 0
        await self._tell(Committed(self.model, complete.number))
        try:
            await asyncio.to_thread(self.store.prune, self.request.settings.checkpoints_kept)
        except CheckpointError as error:
            print(f"an old checkpoint stays: {error}", file=sys.stderr)  # noqa: T201

    async def _checkpoint_failed(self, message: CheckpointFailed) -> None:
        assert self.coordinator is not None
        if self.coordinator.in_flight == message.checkpoint:
            self.coordinator.abort(message.error)
            await self._given_up(message.checkpoint, message.error)

    async def _given_up(self, checkpoint: int, reason: str) -> None:
        """The run goes on without this checkpoint, but not for ever, and not without its last one."""
        assert self.store is not None
        self.failures += 1
        with contextlib.suppress(CheckpointError):
            await asyncio.to_thread(self.store.discard, checkpoint)
        if self.failures >= _FAILED_CHECKPOINTS:
            raise CheckpointError(f"{self.failures} checkpoints in a row failed; the last, {checkpoint}: {reason}")
        if self.last == checkpoint:
            self.last = None  # the next one is the last one then
        print(f"checkpoint {checkpoint} failed: {reason}", file=sys.stderr)  # noqa: T201

    async def _listen(self, slot: int) -> None:
        async for message in self.workers[slot].messages():
            self.inbox.put_nowait((slot, message))
        self.inbox.put_nowait((slot, None))

    async def _tell(self, message: Message) -> None:
        for worker in self.workers:
            await worker.send(message)

    async def _await_all(self, kind: type[Message]) -> None:
        """Wait for one message of a kind from every worker; others are handled on the way."""
        waiting = set(range(len(self.workers)))
        deadline = time.monotonic() + _STEP_TIMEOUT
        while waiting:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    slot, message = await self.inbox.get()
            except TimeoutError:
                raise WorkerError(f"workers {sorted(waiting)} did not answer {kind.__name__} in time") from None
            if isinstance(message, kind):
                waiting.discard(slot)
            else:
                await self._take(slot, message)

    def _progress(self) -> None:
        now = time.monotonic()
        reports = list(self.metrics.values())
        executors = [executor for report in reports for executor in report.executors]
        sources = {stage.id for stage in self.topology.stages if stage.has_source}
        read = [executor for executor in executors if executor.executor.stage in sources]
        records = sum(executor.records_in for executor in read)
        shares = [executor.progress for executor in read]
        known = [share for share in shares if share is not None]
        lags = [executor.lag for executor in read if executor.lag is not None]
        self.on_progress(
            Progress(
                records=records,
                rate=self._rate(records),
                share=sum(known) / len(known) if known and len(known) == len(shares) else None,
                lag=sum(lags) if lags else None,
                checkpoint=self.complete,
                executors=executors,
                metrics=reports,
                elapsed=now - self.started,
            )
        )
        self.told, self.told_records = now, records

    def _rate(self, records: int) -> float:
        """Records per second between the first and the last report of the window. Workers report more seldom than
        progress is told, so the time of the reports counts and not the time of the telling."""
        if self.measured > self.samples[-1][0]:
            self.samples.append((self.measured, records))
        while len(self.samples) > 2 and self.samples[1][0] <= self.measured - _RATE_WINDOW:
            self.samples.popleft()
        (start, first), (end, last) = self.samples[0], self.samples[-1]
        # Sources read a little before the start is known: over a very short span that would be a huge rate.
        return (last - first) / (end - start) if end - start >= _RATE_WINDOW / 8 else 0.0

    def _result(self, drained: bool) -> RunResult:
        counters: dict[str, int] = {}
        for report in self.metrics.values():
            for executor in report.executors:
                for name, count in executor.counters.items():
                    counters[name] = counters.get(name, 0) + count
        return RunResult(
            flow=self.model,
            collected=self.collected,
            records=self.told_records,
            elapsed=time.monotonic() - self.started,
            counters=counters,
            metrics=list(self.metrics.values()),
            checkpoint=self.complete,
            restored=self.restored,
            drained=drained,
        )

    async def release(self, grace: float) -> None:
        """End and reap all workers, then let others use the checkpoints."""
        try:
            await asyncio.gather(*(worker.stop(grace) for worker in self.workers), return_exceptions=True)
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
        finally:
            if self.store is not None:
                self.store.close()


def _steps(topology: Topology) -> list[list[str]]:
    """What a checkpoint's state belongs to: the steps of every stage."""
    return [list(stage.steps) for stage in topology.stages]
