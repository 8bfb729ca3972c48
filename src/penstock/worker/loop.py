"""The worker's one loop: control messages, frames, executors, timers. All user code runs in this thread.

Nothing here blocks but the poll, which ends when a frame, a message or a `wake` comes, or the next timer is due.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import socket
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec
import psutil
import zmq

from penstock.clock import Clock, SystemClock
from penstock.errors import CheckpointError, ExchangeError, PenstockError, UsageError
from penstock.exchange.channel import Verdict
from penstock.exchange.frame import Kind, decode
from penstock.flow.config import activate
from penstock.worker import requests, snapshot
from penstock.worker.channels import Item
from penstock.worker.control import WorkerControl
from penstock.worker.executor import Executor
from penstock.worker.messages import (
    AnyMessage,
    Barrier,
    Checkpointed,
    CheckpointFailed,
    Committed,
    Connect,
    Connected,
    Drain,
    ExecutorId,
    Failed,
    Finished,
    Handover,
    Listing,
    Load,
    Loaded,
    Log,
    Lookup,
    Message,
    Push,
    Ready,
    Release,
    Released,
    Reply,
    Running,
    Shutdown,
    Start,
    Stop,
    Stopped,
)
from penstock.worker.model import Model, build_model
from penstock.worker.output import Capture, sendable
from penstock.worker.replicated.frames import read_letter
from penstock.worker.reports import Reporter
from penstock.worker.snapshot import Part
from penstock.worker.store import CheckpointStore
from penstock.worker.transport import Transport

_LONGEST_ERROR, _LONGEST_TRACE = 4000, 16_000
"""Characters that everybody has to read: they are kept in Redis."""
_FRAMES_AT_ONCE = 64
_LONGEST_POLL = 0.1
_REMOVED_MEANWHILE = 5
"""So often a checkpoint may be removed while it is looked at, because there is a later one."""


class Worker:
    """A process that runs executors. `run` returns when the supervisor says so, or is gone."""

    def __init__(
        self,
        control: WorkerControl,
        transport: Transport,
        clock: Clock | None = None,
        output: Capture | None = None,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self._output = output or Capture()
        self._control, self._transport = control, transport
        self._models: dict[str, Model] = {}
        self._numbers: dict[int, Model] = {}
        self._stores: dict[str, CheckpointStore] = {}
        self._taken: dict[tuple[str, int], dict[Executor, snapshot.Part]] = {}
        self._reporters: dict[str, Reporter] = {}
        self._forgotten = False
        """A model is gone and its memory is not given back yet."""
        self._done = False
        self._process = psutil.Process()
        self._bell, self._bell_in = socket.socketpair()
        self._bell.setblocking(False)
        self._bell_in.setblocking(False)
        self._disk = ThreadPoolExecutor(1, "checkpoint")
        self._written: list[Callable[[], None]] = []
        self._writing: set[tuple[str, ExecutorId]] = set()
        """Executors whose part of a checkpoint is being written, or waits for that."""
        self._rung = False
        self.refused = 0
        """Frames that belong to no channel here."""

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until told to stop. Models that are still here then are aborted."""
        self.say(Ready(os.getpid(), self._transport.endpoint, self._transport.server_key))
        poller = zmq.Poller()
        poller.register(self._transport.socket, zmq.POLLIN)
        poller.register(self._control.fileno(), zmq.POLLIN)
        poller.register(self._bell.fileno(), zmq.POLLIN)
        try:
            while not self._done and not self._control.closed:
                if not self._turn():
                    self._wait(poller)
        finally:
            for model in list(self._models.values()):
                self._drop(model, well=False)
            self._disk.shutdown()
            self._control.close()
            self._transport.close()
            self._bell.close()
            self._bell_in.close()

    def _turn(self) -> bool:
        messages = self._control.receive()
        if self._control.closed:
            # What a supervisor asked for before it died must not happen now: its successor may be at work already.
            return False
        for message in messages:
            self._obey(message)
        did = self._receive_frames()
        if self._rung:
            # Looked at in every turn, not only after a wait: a busy worker never waits.
            self._rung = False
            self._woken()
        while self._written:
            self._written.pop(0)()
        for model in list(self._models.values()):
            did = self._guard(model, partial(self._work, model)) or did
        self._say_output(self._output.taken())
        if self._forgotten:
            self._give_back()
        return did

    def _work(self, model: Model) -> bool:
        did = False
        if not model.started:
            return False
        for executor in model.executors.values():
            did = executor.work() or did
        now = self.clock.monotonic()
        self._reporters[model.name].tick(now)
        if now >= model.flush_at:
            model.flush_at = now + model.load.settings.flush_interval
            for executor in model.executors.values():
                executor.flush_sinks()
        return did

    def _guard(self, model: Model, act: Callable[[], bool | None]) -> bool:
        """Run something of a model; what it raises ends the model, not the worker."""
        activate(model.scope)
        self._output.model = model.name
        try:
            return bool(act())
        except (Exception, SystemExit) as error:
            self._fail(model.name, error)
            self._drop(model, well=False)
            return True
        finally:
            self._output.model = ""

    def _wait(self, poller: zmq.Poller) -> None:
        now = self.clock.monotonic()
        due = now + _LONGEST_POLL
        for model in self._models.values():
            for executor in model.executors.values() if model.started else ():
                due = min(due, executor.next_read())
        for ready, _ in poller.poll(math.ceil(max(0.0, due - now) * 1000)):
            if ready == self._bell.fileno():
                self._bell.recv(4096)

    def _woken(self) -> None:
        for model in list(self._models.values()):
            self._guard(model, model.woken)

    def wake(self) -> None:
        """Make the loop look again; from any thread."""
        if self._rung:
            return
        self._rung = True
        try:
            self._bell_in.send(b"!")
        except (BlockingIOError, OSError):
            pass  # it is awake already, or gone

    @property
    def endpoint(self) -> str:
        """Where this worker is reached."""
        return self._transport.endpoint

    def reconnect(self, endpoint: str) -> None:
        """A peer is silent: make the connection anew."""
        self._transport.drop(endpoint)

    # ---- frames -----------------------------------------------------------------------------------------------------

    def send(self, endpoint: str, frame: bytes) -> None:
        """Hand a frame to the transport."""
        self._transport.send(endpoint, frame)

    def _receive_frames(self) -> bool:
        for count in range(_FRAMES_AT_ONCE):
            frame = self._transport.receive()
            if frame is None:
                return count > 0
            try:
                self._dispatch(frame)
            except (ExchangeError, msgspec.MsgspecError):
                self.refused += 1
        return True

    def _dispatch(self, frame: bytes) -> None:
        header, payload = decode(frame)
        model = self._numbers.get(header.channel >> 16)
        if model is None:
            self.refused += 1
            return
        if header.kind is Kind.REPLICA:
            model.deliver(read_letter(payload))
            return
        channel = header.channel & 0xFFFF
        if header.kind is Kind.ACK:
            outbound = model.outbounds.get(channel)
            if outbound is not None:
                outbound.acknowledged(header.epoch, header.seq)
            return
        inbound = model.inbounds.get(channel)
        if inbound is None:
            model.refused += 1
            return
        if inbound.receiver.receive(header.epoch, header.seq, len(frame)) is Verdict.ACCEPT:
            item = Item(inbound, header.kind, payload, header, len(frame))
            model.consumers[channel].offer(item)

    # ---- control ----------------------------------------------------------------------------------------------------

    def say(self, message: Message) -> None:
        """Tell the supervisor, after what models have written before."""
        self._say_output(self._output.taken())
        self._control.send(message)

    def _say_output(self, lines: list[Log]) -> None:
        for line in lines:
            self._control.send(line)

    def _obey(self, message: AnyMessage) -> None:
        match message:
            case Load():
                self._load(message)
            case Connect():
                self._transport.know(message.server_keys)
                self._with(message.model, lambda model: self._connect(model, message))
            case Start():
                self._with(message.model, self._start)
            case Barrier():
                self._with(message.model, lambda model: model.request(message.checkpoint))
            case Committed():
                self._with(message.model, lambda model: self._commit(model, message.checkpoint))
            case Drain():
                self._with(message.model, lambda model: model.drain(finish=message.finish))
            case Handover():
                self._with(message.model, lambda model: self._hand_over(model, message))
            case Release():
                self._release(message)
            case Stop():
                self._stop(message)
            case Lookup() | Listing() | Push():
                self._answer(message)
            case Shutdown():
                # A run that ended well has stopped its models before; now nobody knows what became of the others.
                for model in list(self._models.values()):
                    self._drop(model, well=False)
                self._done = True
            case _:
                raise UsageError(f"a worker does not obey {type(message).__name__}")

    def _with(self, name: str, act: Callable[[Model], None]) -> None:
        model = self._models.get(name)
        if model is not None:
            self._guard(model, lambda: act(model))

    def _load(self, load: Load) -> None:
        self._output.model = load.model
        try:
            if load.model in self._models or load.number in self._numbers:
                raise UsageError(f"model {load.model!r} (number {load.number}) is already loaded in this worker")
            # The author's module is imported here, for the first time in this process.
            from penstock.model.loader import load_graph, migration_of

            graph = load_graph(load.target, load.config)
            parts: dict[int, list[snapshot.Part]] = {}
            if load.checkpoint_url is not None:
                store = self._stores[load.model] = CheckpointStore(load.checkpoint_url, graph.name)
                store.join()
                if load.restore is not None:
                    parts = _restored(store, load.restore, {e.stage for e in load.executors})
            model = build_model(load, graph, self, parts)
            model.migrate = migration_of(load.target)
        except (Exception, SystemExit) as error:
            self._forget_store(load.model)
            self._fail(load.model, error)
            if load.model not in self._models:
                self._forget_code(load)
            return
        finally:
            self._output.model = ""
        self._models[model.name] = self._numbers[model.number] = model
        self._reporters[model.name] = Reporter(model, self.say, self._process, self.clock)
        # What exists now lives as long as the model: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        self.say(Loaded(model.name, graph.topology))

    def _connect(self, model: Model, message: Connect) -> None:
        model.connect(message)
        self._transport.forget(
            {
                endpoint
                for other in self._models.values()
                for endpoint in (*other.endpoints.values(), *other.replicas.values())
            }
        )
        self.say(Connected(model.name))

    def _start(self, model: Model) -> None:
        model.start()
        self.say(Running(model.name))

    def _hand_over(self, model: Model, message: Handover) -> None:
        for replica in model.replicated():
            if replica.id == message.executor:
                replica.hand_over(message.standby)

    def _release(self, message: Release) -> None:
        model = self._models.get(message.model)
        if model is not None:
            if set(model.executors) <= set(message.executors):
                self._drop(model, well=False)
            else:
                self._output.model = model.name
                for error in model.release(message.executors):
                    self._fail(model.name, error)
                self._output.model = ""
        self.say(Released(message.model, message.executors))

    def _stop(self, message: Stop) -> None:
        model = self._models.get(message.model)
        if model is not None:
            self._drop(model, well=all(executor.reported for executor in model.executors.values()))
        self.say(Stopped(message.model))

    def _answer(self, message: Lookup | Listing | Push) -> None:
        try:
            model = self._models.get(message.model)
            if model is None:
                raise UsageError(f"model {message.model!r} does not run here")
            activate(model.scope)
            self._output.model = model.name
            reply = requests.answer(model, message)
            if reply is not None:
                self.say(reply)
        except Exception as error:
            self.say(Reply(message.id, False, None, str(error)))
        finally:
            self._output.model = ""

    def _forget_store(self, name: str) -> None:
        store = self._stores.pop(name, None)
        if store is not None:
            self._disk.submit(store.close)  # behind what is still being written

    def _fail(self, name: str, error: BaseException) -> None:
        known = isinstance(error, PenstockError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
        self.say(Failed(name, sendable(text, _LONGEST_ERROR), sendable(trace, _LONGEST_TRACE), type(error).__name__))

    def _drop(self, model: Model, *, well: bool) -> None:
        self._output.model = model.name
        del self._models[model.name]
        del self._numbers[model.number]
        self._reporters.pop(model.name).report(self.clock.monotonic())
        self._forget_store(model.name)
        self._taken = {key: value for key, value in self._taken.items() if key[0] != model.name}
        for error in model.close(well=well):
            self._fail(model.name, error)
        self._forget_code(model.load)
        self._output.model = ""

    def _forget_code(self, load: Load) -> None:
        """A model's output is complete, and nobody else imports its modules."""
        from penstock.model.loader import unload

        self._say_output(self._output.ended(load.model))
        if _folder(load) not in {_folder(model.load) for model in self._models.values()}:
            unload(load.target)
        self._forgotten = True

    def _give_back(self) -> None:
        """Free what belonged to models that are gone. Not while they are dropped: their code is on the stack then."""
        self._forgotten = False
        gc.unfreeze()
        gc.collect()
        if self._models:
            gc.freeze()
        with contextlib.suppress(OSError, AttributeError):  # only glibc has it; it keeps large blocks otherwise
            ctypes.CDLL(None).malloc_trim(0)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def snapshot(self, model: Model, executor: Executor, checkpoint: int) -> None:
        """Take an executor's state now, write it in the background."""
        store = self._stores.get(model.name)
        if store is None:
            return
        part = snapshot.take(executor, checkpoint)
        pause = self.clock.monotonic() - executor.barrier_at
        # Of the state, only what `_commit` needs is kept.
        self._taken.setdefault((model.name, checkpoint), {})[executor] = snapshot.without_state(part)
        self.store(model, executor.id, checkpoint, snapshot.write(part), pause)

    def part(self, model: Model, executor: ExecutorId, checkpoint: int) -> tuple[int, Part | None]:
        """An executor's part of a complete checkpoint, or of a later one: this one may have been removed since."""
        store = self._stores.get(model.name)
        if store is None:
            return checkpoint, None
        for _ in range(_REMOVED_MEANWHILE):
            try:
                if str(executor) not in store.manifest(checkpoint)["parts"]:
                    return checkpoint, None
                return checkpoint, snapshot.read(store.read_part(checkpoint, str(executor)))
            except CheckpointError:
                latest = store.latest()
                if latest is None or latest[0] <= checkpoint:
                    raise
                checkpoint = latest[0]
        raise CheckpointError(f"checkpoints of {model.name} are removed faster than they can be read")

    def store(self, model: Model, executor: ExecutorId, checkpoint: int, data: bytes | None, pause: float) -> None:
        """Write an executor's part in the background, and say when it is durable."""
        store, name, here = self._stores.get(model.name), model.name, executor
        if store is None:
            return
        if data is None:
            self.say(CheckpointFailed(name, checkpoint, f"the state of executor {here} could not be taken"))
            return
        if (name, here) in self._writing:  # a store that hangs must not fill the memory with what waits for it
            text = f"the store has not taken the part of executor {here} of an earlier checkpoint yet"
            self.say(CheckpointFailed(name, checkpoint, text))
            return
        self._writing.add((name, here))

        def done(message: Message) -> None:
            self._written.append(lambda: self.say(message))
            self.wake()

        def write() -> None:
            try:
                size = store.write_part(checkpoint, str(here), data)
            except CheckpointError as error:
                done(CheckpointFailed(name, checkpoint, str(error)))
            except Exception as error:
                done(CheckpointFailed(name, checkpoint, f"{type(error).__name__}: {error}"))
            else:
                done(Checkpointed(name, checkpoint, here, size, pause))
            finally:
                self._writing.discard((name, here))

        self._disk.submit(write)

    def _commit(self, model: Model, checkpoint: int) -> None:
        model.checkpoint = max(checkpoint, model.checkpoint or 0)
        for replica in model.replicated():
            replica.committed(checkpoint)
        for executor, part in self._taken.get((model.name, checkpoint), {}).items():
            executor.committed(part.pending(), part.positions())
        for key in [key for key in self._taken if key[0] == model.name and key[1] <= checkpoint]:
            del self._taken[key]

    def finished(self, model: Model, executor: Executor) -> None:
        """An executor has processed all its input."""
        if model.load.checkpoint_url is None:
            for sink in executor.sinks.values():
                sink.end(well=True)
        self.say(Finished(model.name, executor.id))

    def ended(self, model: Model, executor: ExecutorId) -> None:
        """A replicated executor has processed all its input."""
        self.say(Finished(model.name, executor))


def _folder(load: Load) -> Path:
    """Where a model's modules are."""
    from penstock.model.loader import parse_target

    path = Path(parse_target(load.target)[0])
    return path if path.is_dir() else path.parent


def _restored(store: CheckpointStore, checkpoint: int, stages: set[int]) -> dict[int, list[snapshot.Part]]:
    """The parts of a checkpoint, by stage, each in order of executor."""
    parts: dict[int, list[snapshot.Part]] = {}
    for name in store.manifest(checkpoint)["parts"]:
        stage, index = (int(text) for text in name.split("."))
        if stage in stages:
            parts.setdefault(stage, []).append(snapshot.read(store.read_part(checkpoint, f"{stage}.{index}")))
    for found in parts.values():
        found.sort(key=lambda part: part.executor)
    return parts
