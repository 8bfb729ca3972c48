"""Taking a replica's state: for its standbys, often; for durable checkpoints, when the barriers say so.

A small state is encoded at once. A large one is encoded by a copy of the process (`penstock.worker.forked`), so that
the executor stands still for the fork only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from penstock.errors import WorkerError
from penstock.exchange.replica.instructions import Instruction
from penstock.exchange.replica.primary import Cut
from penstock.exchange.replica.replica import Replica
from penstock.settings import Replication
from penstock.worker import snapshot
from penstock.worker.forked import POSSIBLE, run_forked
from penstock.worker.messages import ExecutorId
from penstock.worker.model import Model
from penstock.worker.replicated.live import Live

_LARGE_KEYS = 20_000
_SLOW = 0.02
"""A state of so many keys, or that took so many seconds to encode, is encoded by a copy."""
_LARGE_BYTES = 1 << 20
_SHARE = 5
"""Between two checkpoints to a standby lies at least so many times what the last one took."""


class Encoder:
    """Encodes the state of one executor, here or in a copy; `wake` is called when the copy's result is there."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._took = 0.0
        self._arrived: deque[tuple[Callable[[bytes | None], None], bytes | None]] = deque()

    def encode(self, live: Live, dump: Callable[[], bytes], done: Callable[[bytes | None], None]) -> None:
        """`done` gets the state as it is now: at once, or by a later `deliver`; `None` when that failed."""
        keys = sum(len(operator.state) for operator in live.chain.keyed().values())
        if POSSIBLE and (keys > _LARGE_KEYS or self._took > _SLOW):
            try:
                run_forked(dump, lambda result: self._arrive(done, result))
                return
            except OSError:
                pass  # no room for a copy
        start = time.monotonic()
        data = dump()
        self._took = time.monotonic() - start
        done(data)

    def _arrive(self, done: Callable[[bytes | None], None], result: bytes | WorkerError) -> None:
        self._arrived.append((done, None if isinstance(result, WorkerError) else result))
        self._wake()

    def deliver(self) -> None:
        """Hand over what copies have brought."""
        while self._arrived:
            done, data = self._arrived.popleft()
            if data is not None and len(data) < _LARGE_BYTES:
                self._took = 0.0  # it was slow for another reason than its size
            done(data)


class StandbyCheckpoints:
    """When the standbys of a primary get its state."""

    def __init__(
        self,
        machine: Replica,
        encoder: Encoder,
        settings: Replication,
        carry_out: Callable[[list[Instruction]], None],
    ) -> None:
        self._machine, self._encoder, self._settings, self._carry_out = machine, encoder, settings, carry_out
        self._begun = 0.0
        self._took = 0.0
        self._records = 0

    def tend(self, live: Live, now: float) -> None:
        """Take a checkpoint if one is due."""
        machine, settings = self._machine, self._settings
        if not machine.checkpoint_due():
            return
        pause = now - self._begun
        held = sum(line.processed_bytes for line in machine.core.inputs.values())
        due = (
            machine.snapshot_wanted()
            or pause >= settings.checkpoint_interval
            or 0 < settings.checkpoint_records <= live.records_in - self._records
            or held >= settings.checkpoint_bytes
        )
        if not due or pause < _SHARE * self._took:
            return
        cut = machine.begin_checkpoint()
        assert cut is not None
        self._begun, self._records = now, live.records_in
        self._encoder.encode(live, live.dump, lambda data: self._taken(cut, data))

    def _taken(self, cut: Cut, data: bytes | None) -> None:
        self._took = time.monotonic() - self._begun
        if data is None:
            self._machine.give_up_checkpoint(cut)
        else:
            self._carry_out(self._machine.checkpoint(cut, data))


class DurableParts:
    """One executor's parts of durable checkpoints that are not complete yet."""

    def __init__(self, model: Model, executor: ExecutorId, encoder: Encoder) -> None:
        self._model, self._id, self._encoder = model, executor, encoder
        self._parts: dict[int, snapshot.Part] = {}
        self._owing: dict[int, set[str]] = {}
        """Sinks that have not prepared yet."""
        self._barrier_at: float | None = None

    def begun(self) -> None:
        """The first barrier of a checkpoint came."""
        self._barrier_at = self._model.around.clock.monotonic()

    def aligned(self, live: Live, checkpoint: int, sinks: set[str]) -> None:
        """Everything before the barriers has been executed, nothing behind them."""
        if sinks:
            self._parts[checkpoint] = snapshot.take(live, checkpoint)
            self._owing[checkpoint] = sinks
            return
        self._parts[checkpoint] = snapshot.without_keys(live)
        pause = self._pause()
        self._encoder.encode(
            live,
            lambda: snapshot.write(snapshot.take(live, checkpoint)),
            lambda data: self._model.around.store(self._model, self._id, checkpoint, data, pause),
        )

    def prepared(self, step: str, checkpoint: int, pending: object) -> None:
        """A sink has made its share durable."""
        part = self._parts.get(checkpoint)
        if part is None or checkpoint not in self._owing:
            return
        snapshot.add_sink(part, step, pending)
        self._owing[checkpoint].discard(step)
        if not self._owing[checkpoint]:
            del self._owing[checkpoint]
            self._model.around.store(self._model, self._id, checkpoint, snapshot.write(part), self._pause())
            self._parts[checkpoint] = snapshot.without_state(part)

    def _pause(self) -> float:
        since = self._barrier_at
        return 0.0 if since is None else self._model.around.clock.monotonic() - since

    def complete(self, checkpoint: int) -> snapshot.Part | None:
        """The checkpoint is complete: what it takes to make it visible. Earlier ones are forgotten."""
        part = self._parts.get(checkpoint)
        for number in [number for number in self._parts if number <= checkpoint]:
            del self._parts[number]
            self._owing.pop(number, None)
        return part
