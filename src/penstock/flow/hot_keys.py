"""Which keys are most frequent, in bounded memory: to name the one that makes an executor hot.

Unlike the sketches of `penstock.flow.sketches` this is a measurement and no aggregate: what it says is true within
bounds that it tells, but depends on how the stream was cut into batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import NamedTuple

from penstock.errors import UsageError

__all__ = ["HotKey", "HotKeys"]


class HotKey(NamedTuple):
    """A frequent key: its share of all records is from `least` to `most`."""

    key: Hashable
    least: float
    most: float


class HotKeys:
    """Counts of the most frequent keys: a Misra-Gries summary, merged batch by batch (Agarwal et al., "Mergeable
    summaries", PODS 2012, section 3).

    A key that makes up more than 1 / (`size` + 1) of the records is always among them, and no count is too low by more
    than that share. Counting a batch of n keys costs one pass in C, and n log n of its different keys if they are many.
    """

    __slots__ = ("_counts", "_missed", "size", "total")

    def __init__(self, size: int = 64) -> None:
        if size < 1:
            raise UsageError(f"a sketch of {size} keys can name none", remedy="keep at least 1, better 64")
        self.size = size
        self.total = 0.0
        """Keys counted, faded."""
        self._missed = 0.0
        self._counts: dict[Hashable, float] = {}

    def add(self, keys: Iterable[Hashable]) -> None:
        """Count the keys of a batch."""
        counts = self._counts
        for key, count in Counter(keys).items():
            counts[key] = counts.get(key, 0) + count
            self.total += count
        self._shrink()

    def merge(self, other: HotKeys) -> None:
        """Count what another sketch has counted."""
        for key, count in other._counts.items():
            self._counts[key] = self._counts.get(key, 0) + count
        self.total += other.total
        self._missed += other._missed
        self._shrink()

    def fade(self, left: float = 0.5) -> None:
        """Let the past count less: this share of it is left."""
        if not 0 <= left <= 1:
            raise UsageError(f"{left} of the past cannot be left", remedy="give a share from 0 to 1")
        self.total *= left
        self._missed *= left
        self._counts = {key: count * left for key, count in self._counts.items()}

    def _shrink(self) -> None:
        if len(self._counts) <= self.size:
            return
        surplus = sorted(self._counts.values(), reverse=True)[self.size]
        self._missed += surplus
        self._counts = {key: count - surplus for key, count in self._counts.items() if count > surplus}

    def top(self, number: int = 1) -> list[HotKey]:
        """The most frequent keys, first the most frequent one."""
        if not self.total:
            return []
        best = sorted(self._counts.items(), key=lambda item: -item[1])[:number]
        return [HotKey(key, c / self.total, min(1.0, (c + self._missed) / self.total)) for key, c in best]
