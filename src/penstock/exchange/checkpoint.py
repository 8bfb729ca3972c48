"""Which checkpoint is under way, who must still report, and what a complete one consists of. No I/O.

Every executor is part of every checkpoint. One that has reached the end of its input has no barrier to wait for: it
reports its last state, and that it has finished, as soon as a checkpoint begins.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

E = TypeVar("E", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Part:
    """One executor's share of a checkpoint."""

    checkpoint: int
    """The checkpoint under whose number the executor wrote it."""
    info: Any = None
    """Whatever the executor reported: where it lies, its size, offsets."""


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
    restarts. `timeout` is in seconds.
    """

    def __init__(self, executors: Iterable[E], *, timeout: float = 60.0, after: int = 0) -> None:
        self._executors: dict[E, None] = dict.fromkeys(executors)
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

    def begin(self, now: float) -> int | None:
        """Start the next checkpoint: the number to put into the barriers. `None` while one is under way."""
        if self.in_flight is not None:
            return None
        self.number += 1
        self.in_flight = self.number
        self._started = now
        self._waiting = dict(self._executors)
        self._parts = {}
        return self.number

    def on_part(self, executor: E, checkpoint: int, info: Any = None) -> Complete[E] | None:
        """`executor` has made its part durable. Repeated and late reports change nothing."""
        if checkpoint != self.in_flight or executor not in self._waiting:
            self.late += checkpoint != self.in_flight
            return None
        del self._waiting[executor]
        self._parts[executor] = Part(checkpoint, info)
        if self._waiting:
            return None
        complete = Complete(checkpoint, self._parts, self._started)
        self._clear()
        return complete

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

    def _clear(self) -> None:
        self.in_flight = None
        self._parts = {}
        self._waiting = {}
