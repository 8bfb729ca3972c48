"""Which keys wait for which time: a heap of times, and the keys of each."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator

__all__ = ["Timers"]


class Timers:
    """Timers in event time. A key may have several; the same one set twice goes off once."""

    __slots__ = ("_heap", "_keys")

    def __init__(self) -> None:
        self._heap: list[int] = []
        self._keys: dict[int, dict[Hashable, None]] = {}

    def set(self, key: Hashable, at: int) -> None:
        """Let `(at, key)` go off when time has reached `at`."""
        keys = self._keys.get(at)
        if keys is None:
            keys = self._keys[at] = {}
            heapq.heappush(self._heap, at)
        keys[key] = None

    def until(self, time: int) -> Iterator[tuple[int, Hashable]]:
        """Take out all timers up to `time`, in order, and also those that are set meanwhile."""
        while self._heap and self._heap[0] <= time:
            at = heapq.heappop(self._heap)
            for key in self._keys.pop(at):
                yield at, key
