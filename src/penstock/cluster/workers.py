"""The worker processes of one node: started, spoken to, watched, reaped. Warm ones wait for their first model.

What a worker says goes to `WorkerEvents`; numbered requests (look-ups, pushes) are matched with their replies here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from penstock.cluster.cancellation import end
from penstock.cluster.launcher.protocol import Launcher, WorkerHandle, WorkerSpec
from penstock.cluster.service import Unavailable
from penstock.errors import PenstockError, WorkerError
from penstock.settings import ClusterSettings
from penstock.worker.messages import Listing, Lookup, Message, Push, Reply

LOG_LIMIT = 16 * 2**20
"""A worker's log file is cut when it has grown beyond so many bytes."""
STOP_GRACE = 3.0
"""Seconds that a worker gets to exit by itself."""


class WorkerEvents(Protocol):
    """Who hears what happens to workers. The methods return at once."""

    def on_message(self, worker: int, message: Message) -> None:
        """A worker said something that is not a reply."""
        ...

    def on_gone(self, worker: int, reason: str) -> None:
        """A worker that was in use is gone (or could not be started)."""
        ...


@dataclass(eq=False)
class _Worker:
    id: int
    group: str = ""
    """Empty: warm, without user code."""
    handle: WorkerHandle | None = None
    listener: asyncio.Task[None] | None = None
    pending: dict[int, asyncio.Future[Reply]] = field(default_factory=dict)
    outbox: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)
    retired: bool = False
    """Its end is wanted."""


class Workers:
    """The workers of this node, by a number that is never used twice."""

    def __init__(self, launcher: Launcher, spec: WorkerSpec, settings: ClusterSettings, events: WorkerEvents) -> None:
        self._launcher, self._spec, self._settings, self._events = launcher, spec, settings, events
        self._workers: dict[int, _Worker] = {}
        self._ids = itertools.count(1)
        self._requests = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self.warm_problem = ""
        """Why no warm worker could be started the last time."""

    # ---- what there is ----------------------------------------------------------------------------------------------

    def groups(self) -> dict[int, str]:
        """Workers in use -> their group."""
        return {w.id: w.group for w in self._workers.values() if w.group and not w.retired}

    def handle(self, worker: int) -> WorkerHandle | None:
        """A running worker's handle."""
        found = self._workers.get(worker)
        return None if found is None else found.handle

    def pids(self) -> list[int]:
        """The processes, warm ones included."""
        return [w.handle.pid for w in self._workers.values() if w.handle is not None]

    def warm(self) -> int:
        """Workers that wait for a model, or are being started for that."""
        return sum(1 for w in self._workers.values() if not w.group and not w.retired)

    # ---- getting and giving back ------------------------------------------------------------------------------------

    def acquire(self, group: str) -> int:
        """A worker for models of `group`, a warm one if there is one. It may still be starting: `send` waits for it."""
        for worker in self._workers.values():
            if not worker.group and not worker.retired:
                worker.group = group
                self.refill()
                return worker.id
        worker = self._launch(group)
        self.refill()
        return worker.id

    def refill(self) -> None:
        """Keep enough warm workers."""
        while not self._closing and self.warm() < self._settings.warm_workers:
            self._launch("")

    def release(self, worker: int, grace: float = STOP_GRACE) -> None:
        """It is not needed any more: stop it in the background. `on_gone` is not called."""
        found = self._workers.get(worker)
        if found is not None and not found.retired:
            found.retired = True
            self._spawn(self._stop(found, grace))

    def trim_logs(self) -> None:
        """Cut log files that have grown too long. Workers append, so they go on at the start."""
        for worker in self._workers.values():
            path = self._log_file(worker.id)
            with contextlib.suppress(OSError):
                if os.path.getsize(path) > LOG_LIMIT:
                    os.truncate(path, 0)

    def kill(self, worker: int) -> None:
        """Something is wrong with it: kill it; `on_gone` follows."""
        found = self._workers.get(worker)
        if found is not None and found.handle is not None and not found.retired:
            self._spawn(self._reap_killed(found.handle))

    @staticmethod
    async def _reap_killed(handle: WorkerHandle) -> None:
        await handle.stop(0.0)

    async def stop_all(self, grace: float = STOP_GRACE) -> None:
        """Stop and reap every worker, warm ones included; `on_gone` is not called. More can be started afterwards."""
        self._closing = True
        try:
            for worker in list(self._workers.values()):
                self.release(worker.id, grace)
            while self._tasks:
                await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            self._closing = False

    # ---- talking ----------------------------------------------------------------------------------------------------

    def post(self, worker: int, message: Message) -> None:
        """Send a message when the worker is up, after everything posted before. If it is gone, `on_gone` tells."""
        found = self._workers.get(worker)
        if found is not None:
            found.outbox.put_nowait(message)

    async def request(self, worker: int, message: Lookup | Listing | Push, timeout: float) -> Reply:
        """Send a numbered request and wait for its reply. Raises `Unavailable` when there is none in time."""
        found = self._workers.get(worker)
        if found is None or found.handle is None:
            raise Unavailable("the worker is being restarted")
        message.id = next(self._requests)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        found.pending[message.id] = future
        try:
            async with asyncio.timeout(timeout):
                await found.handle.send(message)
                return await future
        except TimeoutError:
            raise Unavailable(f"the worker did not answer within {timeout:g} s") from None
        except WorkerError as error:
            raise Unavailable(f"the worker is being restarted: {error.message}") from error
        finally:
            found.pending.pop(message.id, None)

    # ---- the life of a worker ---------------------------------------------------------------------------------------

    def _launch(self, group: str) -> _Worker:
        worker = _Worker(next(self._ids), group)
        self._workers[worker.id] = worker
        worker.listener = self._spawn(self._live(worker))
        return worker

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _live(self, worker: _Worker) -> None:
        """Start it, pass on what it says, reap it."""
        reason = "it was not needed any more"
        posting: asyncio.Task[None] | None = None
        try:
            worker.handle = await self._launcher.start(self._specified(worker), self._settings.worker_start)
            posting = asyncio.create_task(_post(worker.handle, worker.outbox))
            async for message in worker.handle.messages():
                if isinstance(message, Reply):
                    future = worker.pending.get(message.id)
                    if future is not None and not future.done():
                        future.set_result(message)
                else:
                    self._events.on_message(worker.id, message)
            reason = ended(await worker.handle.stop(0.5), worker.handle.pid)
        except PenstockError as error:
            reason = error.message
            if worker.handle is not None:
                await worker.handle.stop(0.0)
        except asyncio.CancelledError:
            if worker.handle is not None:
                await worker.handle.stop(0.0)
            raise
        finally:
            if posting is not None:
                await end(posting)
            self._buried(worker, reason)

    def _specified(self, worker: _Worker) -> WorkerSpec:
        name = f"{self._spec.name}-{worker.id}"
        return msgspec.structs.replace(self._spec, name=name, log_file=self._log_file(worker.id))

    def _log_file(self, worker: int) -> str:
        return os.path.join(self._spec.data_dir, f"worker-{worker}.log")

    def _buried(self, worker: _Worker, reason: str) -> None:
        self._workers.pop(worker.id, None)
        with contextlib.suppress(OSError):
            os.unlink(self._log_file(worker.id))
        for future in worker.pending.values():
            if not future.done():
                future.set_exception(Unavailable(f"the worker is being restarted: {reason}"))
        if worker.retired:
            return
        if worker.group:
            self._events.on_gone(worker.id, reason)
        else:
            self.warm_problem = reason

    async def _stop(self, worker: _Worker, grace: float) -> None:
        listener = worker.listener
        if worker.handle is not None:
            try:
                await worker.handle.stop(grace)
            except PenstockError:
                pass
        await end(listener)  # while it is being started, the launcher reaps it


async def _post(handle: WorkerHandle, outbox: asyncio.Queue[Message]) -> None:
    with contextlib.suppress(WorkerError):
        while True:
            await handle.send(await outbox.get())


def ended(status: int, pid: int) -> str:
    """How a process ended, for people."""
    if status >= 0:
        return f"worker process {pid} ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"worker process {pid} was killed by {name}"
