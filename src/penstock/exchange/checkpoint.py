"""Which checkpoint is under way, who must still report, and what a complete one consists of. No I/O.

An executor that has reached the end of its input reports its final state once (`on_finished`). It takes part in no
later checkpoint, but its final state belongs to every later manifest: a restored run must know that it had finished.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from penstock.errors import CheckpointError

E = TypeVar("E", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Part:
    """One executor's share of a checkpoint."""

    checkpoint: int
    """The checkpoint under whose number the executor wrote it."""
    info: Any = None
    """Whatever the executor reported: where it lies, its size, offsets."""
    final: bool = False
    """Written at the end of the executor's input."""


@dataclass(frozen=True, slots=True)
class Complete(Generic[E]):
    """Every part is durable: write the manifest, then tell everybody that the checkpoint is committed."""

    number: int
    parts: Mapping[E, Part]
    started: float
    """Seconds (monotonic), as given to `begin`."""


@dataclass(frozen=True, slots=True)
class Abandoned(Generic[E]):
    """A checkpoint that was given up. Its parts can be deleted, its number is never used again."""

    number: int
    reason: str
    missing: tuple[E, ...]


class CheckpointCoordinator(Generic[E]):
    """The checkpoints of one run of a model; at most one is under way.

    `executors` are all that run; `after` is the greatest number ever used (0: none), so that numbers grow over
    restarts; `finished` are the final parts of executors that had ended in the restored checkpoint. `timeout` is in
    seconds.
    """

    def __init__(
        self,
        executors: Iterable[E],
        *,
        timeout: float = 60.0,
        after: int = 0,
        finished: Mapping[E, Part] | None = None,
    ) -> None:
        self.finished: dict[E, Part] = dict(finished or {})
        self._running: dict[E, None] = dict.fromkeys(e for e in executors if e not in self.finished)
        self.timeout = timeout
        self.number = after
        """The greatest number used."""
        self.in_flight: int | None = None
        self.late = 0
        """Reports that came for a checkpoint that was no longer under way."""
        self._started = 0.0
        self._parts: dict[E, Part] = {}
        self._waiting: dict[E, None] = {}

    @property
    def waiting(self) -> tuple[E, ...]:
        """Who has not reported yet."""
        return tuple(self._waiting)

    @property
    def running(self) -> tuple[E, ...]:
        """Executors whose input has not ended."""
        return tuple(self._running)

    def begin(self, now: float) -> int | None:
        """Start the next checkpoint: the number to put into the barriers. `None` while one is under way, or when no
        executor is running any more (see `final`)."""
        if self.in_flight is not None or not self._running:
            return None
        self._start(now)
        return self.number

    def on_part(self, executor: E, checkpoint: int, info: Any = None) -> Complete[E] | None:
        """`executor` has made its part durable. Repeated and late reports change nothing."""
        if checkpoint != self.in_flight or executor not in self._waiting:
            self.late += checkpoint != self.in_flight
            return None
        del self._waiting[executor]
        self._parts[executor] = Part(checkpoint, info)
        return self._complete()

    def on_finished(self, executor: E, checkpoint: int, info: Any = None) -> Complete[E] | None:
        """`executor` has processed all its input and made its final state durable, as a part numbered `checkpoint`. If
        the checkpoint under way still waits for it, its final state is its part: its barrier never came, so everything
        that it sent lies before its consumers' barriers."""
        if executor not in self._running:
            if executor not in self.finished:
                raise CheckpointError(f"{executor} finished, but is no executor of this run")
            return None
        del self._running[executor]
        self.finished[executor] = Part(checkpoint, info, final=True)
        if self.in_flight is None or executor not in self._waiting:
            return None
        del self._waiting[executor]
        self._parts[executor] = self.finished[executor]
        return self._complete()

    def final(self, now: float) -> Complete[E] | None:
        """When every executor has finished and none is under way: the last checkpoint, complete at once. A run that is
        started again from it has nothing to do."""
        if self.in_flight is not None or self._running or not self.finished:
            return None
        self._start(now)
        return self._complete()

    def on_time(self, now: float) -> Abandoned[E] | None:
        """Give the checkpoint up when it has taken too long."""
        if self.in_flight is None or now - self._started < self.timeout:
            return None
        return self.abort(f"not complete after {self.timeout:g} s")

    def abort(self, reason: str) -> Abandoned[E] | None:
        """Give the checkpoint under way up; `None` when there is none."""
        if self.in_flight is None:
            return None
        abandoned = Abandoned(self.in_flight, reason, tuple(self._waiting))
        self._clear()
        return abandoned

    def _start(self, now: float) -> None:
        self.number += 1
        self.in_flight = self.number
        self._started = now
        self._waiting = dict(self._running)
        self._parts = dict(self.finished)

    def _complete(self) -> Complete[E] | None:
        if self._waiting or self.in_flight is None:
            return None
        complete = Complete(self.in_flight, self._parts, self._started)
        self._clear()
        return complete

    def _clear(self) -> None:
        self.in_flight = None
        self._parts = {}
        self._waiting = {}
