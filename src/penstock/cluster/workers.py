"""The worker processes of one node: started, spoken to, watched, reaped.

Each worker in use belongs to one pool, (group, environment): only models of one group that require the same share an
interpreter. Warm ones wait for their first model; reserved ones have been started for a transaction that is not decided
yet. What a worker says goes to `WorkerEvents`; numbered requests (look-ups, pushes) are matched with their replies.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from penstock.cluster.cancellation import end
from penstock.cluster.launcher.protocol import Launcher, WorkerHandle, WorkerSpec
from penstock.cluster.service import NotBegun, Unavailable
from penstock.errors import PenstockError, WorkerError
from penstock.model.environment import BASE, Environment
from penstock.settings import ClusterSettings
from penstock.worker.messages import Listing, Lookup, Message, Push, Reply

LOG_LIMIT = 16 * 2**20
"""A worker's log file is cut when it has grown beyond so many bytes."""
REFILL_AFTER = 1.5
"""Seconds after which a warm worker that was taken is replaced."""
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
    group: str
    """Empty: without user code, warm or reserved."""
    environment: Environment
    tag: str = ""
    """Whose reservation it is."""
    reserved_for: str = ""
    """The group that it is reserved for."""
    up: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Done when it is ready; its exception says why it never will be."""
    handle: WorkerHandle | None = None
    listener: asyncio.Task[None] | None = None
    pending: dict[int, asyncio.Future[Reply]] = field(default_factory=dict)
    outbox: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)
    retired: bool = False
    """Its end is wanted."""

    def is_for(self, group: str, environment: Environment) -> bool:
        """Whether it is reserved for this pool."""
        return self.reserved_for == group and self.environment.key == environment.key


class Workers:
    """The workers of this node, by a number that is never used twice."""

    def __init__(self, launcher: Launcher, spec: WorkerSpec, settings: ClusterSettings, events: WorkerEvents) -> None:
        self._launcher, self._spec, self._settings, self._events = launcher, spec, settings, events
        self._workers: dict[int, _Worker] = {}
        self._ids = itertools.count(1)
        self._requests = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = 0
        """How many `stop_all` are under way."""
        self._refill_at = float("-inf")
        self.warm_problem = ""
        """Why no warm worker could be started the last time."""

    # ---- what there is ----------------------------------------------------------------------------------------------

    def groups(self) -> dict[int, tuple[str, str]]:
        """Workers in use -> their pool: the group and the environment's key."""
        return {w.id: (w.group, w.environment.key) for w in self._workers.values() if w.group and not w.retired}

    def handle(self, worker: int) -> WorkerHandle | None:
        """A running worker's handle."""
        found = self._workers.get(worker)
        return None if found is None else found.handle

    def pids(self) -> list[int]:
        """The processes, warm and reserved ones included."""
        return [w.handle.pid for w in self._workers.values() if w.handle is not None]

    def warm(self) -> int:
        """Workers of the node's own environment that wait for any model, or are being started for that."""
        return len(self._warm())

    def _warm(self) -> list[_Worker]:
        return [w for w in self._workers.values() if not w.group and not w.tag and not w.retired]

    # ---- getting and giving back ------------------------------------------------------------------------------------

    def acquire(self, group: str, environment: Environment = BASE) -> int:
        """A worker for models of `group` in `environment`: one that is reserved for them, else a warm one, else a new
        one. It may still be starting: what is posted waits for it."""
        worker = self._idle(group, environment) or self._launch(environment)
        worker.group, worker.tag, worker.reserved_for = group, "", ""
        self._refill_at = asyncio.get_running_loop().time() + REFILL_AFTER
        return worker.id

    def _idle(self, group: str, environment: Environment) -> _Worker | None:
        for worker in self._workers.values():
            if worker.tag and worker.is_for(group, environment) and not worker.retired:
                return worker
        return None if environment.key else next(iter(self._warm()), None)

    async def reserve(self, tag: str, group: str, environment: Environment = BASE) -> None:
        """Have a worker of `environment` up and waiting for models of `group`, until it is acquired or
        `release_reserved` is called with the same tag. Raises `WorkerError` with its last words when it does not come
        up; nothing is reserved then."""
        held = [w for w in self._workers.values() if w.tag == tag and not w.retired]
        worker = next((w for w in held if w.is_for(group, environment)), None)
        if worker is None:
            warm = [] if environment.key else self._warm()
            worker = next((w for w in warm if w.up.done()), None) or next(iter(warm), None)
            worker = worker or self._launch(environment)
            worker.tag, worker.reserved_for = tag, group
            self._refill_at = asyncio.get_running_loop().time() + REFILL_AFTER
        try:
            await asyncio.shield(worker.up)
        except BaseException:
            self._unreserve(worker)
            raise

    def release_reserved(self, tag: str) -> None:
        """A transaction has ended: its workers that nobody took are stopped, or wait for any model as warm ones."""
        for worker in [w for w in self._workers.values() if w.tag == tag]:
            self._unreserve(worker)

    def _unreserve(self, worker: _Worker) -> None:
        if not worker.tag:
            return
        worker.tag = worker.reserved_for = ""
        if worker.environment.key or self.warm() > self._settings.warm_workers:
            self.release(worker.id)

    def refill(self) -> None:
        """Keep enough warm workers: called again and again. A model that goes online just now needs the processor more
        than the next one does."""
        if asyncio.get_running_loop().time() < self._refill_at:
            return
        while not self._closing and self.warm() < self._settings.warm_workers:
            self._launch(BASE)

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
        """Stop and reap every worker, warm ones included; `on_gone` is not called. More can be started afterwards;
        meanwhile that raises `WorkerError`."""
        self._closing += 1
        try:
            for worker in list(self._workers.values()):
                self.release(worker.id, grace)
            while self._tasks:
                await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            self._closing -= 1

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
            raise NotBegun("the worker is being restarted")
        message.id = next(self._requests)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        found.pending[message.id] = future
        try:
            async with asyncio.timeout(timeout):
                found.outbox.put_nowait(message)  # behind what it was told before
                return await future
        except TimeoutError:
            raise Unavailable(f"the worker did not answer within {timeout:g} s") from None
        finally:
            found.pending.pop(message.id, None)

    # ---- the life of a worker ---------------------------------------------------------------------------------------

    def _launch(self, environment: Environment) -> _Worker:
        if self._closing:  # which would wait for its end for ever
            raise WorkerError("the workers of this node are being stopped")
        worker = _Worker(next(self._ids), "", environment)
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
            if not worker.up.done():
                worker.up.set_result(None)
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
            try:
                await end(posting)
            finally:  # also when this is cancelled just here
                self._buried(worker, reason)

    def _specified(self, worker: _Worker) -> WorkerSpec:
        name = f"{self._spec.name}-{worker.id}"
        python = worker.environment.python if worker.environment.key else self._spec.python
        return msgspec.structs.replace(
            self._spec,
            name=name,
            python=python,
            data_dir=self._directory(worker.id),
            log_file=self._log_file(worker.id),
            capture_output=True,
        )

    def _directory(self, worker: int) -> str:
        """Each has its own, so that nothing of a killed one stays. Paths of sockets must be short."""
        return os.path.join(self._spec.data_dir, f"w{worker}")

    def _log_file(self, worker: int) -> str:
        return os.path.join(self._directory(worker), "log")

    def _buried(self, worker: _Worker, reason: str) -> None:
        self._workers.pop(worker.id, None)
        shutil.rmtree(self._directory(worker.id), ignore_errors=True)
        for future in worker.pending.values():
            if not future.done():
                future.set_exception(Unavailable(f"the worker is being restarted: {reason}"))
        if not worker.up.done():
            worker.up.set_exception(WorkerError(reason))
            worker.up.exception()  # nobody has to wait for it
        if worker.retired:
            return
        if worker.group:
            self._events.on_gone(worker.id, reason)
        elif not worker.environment.key:
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
