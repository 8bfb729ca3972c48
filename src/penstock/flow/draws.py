"""What a step gets from time or chance, drawn where it can be written down and given again.

`ps.now()` and `ps.random()` look the same everywhere. In a replicated executor (recovery `passive` or `active`) what
they give is part of the order log, so a standby that executes or replays a batch gets the same values.
"""

from __future__ import annotations

import datetime as dt
import random as randomness
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from penstock.errors import ExchangeError

__all__ = ["Draws", "NotRepeatable", "now", "random"]


class NotRepeatable(ExchangeError):
    """A step asked for other values than the log has: it is not deterministic."""


class Draws:
    """The values of one executor's log positions: drawn and kept, or taken from what was kept."""

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self._given: deque[Any] | None = None
        self._now: dt.datetime | None = None
        self._random: randomness.Random | None = None

    def begin(self, given: tuple[Any, ...] | None) -> None:
        """A position begins. `given`: what it drew when it was executed first; `None`: it is executed now."""
        global _current
        self._kept, self._given = [], None if given is None else deque(given)
        self._now = self._random = None
        _current = self

    def resume(self) -> None:
        """The position goes on, after others had the thread."""
        global _current
        _current = self

    @staticmethod
    def pause() -> None:
        """Others have the thread: what they draw is not this executor's."""
        global _current
        _current = None

    def end(self) -> tuple[Any, ...]:
        """The position is done; what it drew. Raises `NotRepeatable` when it drew less than it was given."""
        global _current
        _current = None
        if self._given:
            raise NotRepeatable(f"{len(self._given)} values fewer were drawn than when this was executed first")
        return tuple(self._kept)

    def draw(self, kind: str, make: Callable[[], Any]) -> Any:
        """A plain value of some kind: made now, or the one that was made then. Raises `NotRepeatable`."""
        if self._given is None:
            value = make()
        else:
            if not self._given or self._given[0][0] != kind:
                raise NotRepeatable(
                    f"a value of kind {kind!r} was asked for, which was not when this was executed first"
                )
            value = self._given.popleft()[1]
        self._kept.append((kind, value))
        return value

    @property
    def repeating(self) -> bool:
        """Whether values are given, not made."""
        return self._given is not None

    def now(self) -> dt.datetime:
        """One for a batch."""
        if self._now is None:
            nanoseconds: int = self.draw("now", time.time_ns)
            self._now = dt.datetime.fromtimestamp(nanoseconds / 1e9, dt.UTC)
        return self._now

    def random(self) -> randomness.Random:
        """One generator for a batch."""
        if self._random is None:
            seed: int = self.draw("random", lambda: randomness.SystemRandom().getrandbits(62))
            self._random = randomness.Random(seed)
        return self._random


_current: Draws | None = None
"""Of the executor whose position is being executed."""
_anywhere = randomness.Random()


def now() -> dt.datetime:
    """The time, in UTC. In a replicated executor all records of a batch get the same, and a standby gets it too."""
    if _current is None or threading.current_thread() is not threading.main_thread():
        return dt.datetime.now(dt.UTC)
    return _current.now()


def random() -> randomness.Random:
    """A random generator. In a replicated executor it is seeded for each batch, and a standby gets the same seed."""
    if _current is None or threading.current_thread() is not threading.main_thread():
        return _anywhere
    return _current.random()
