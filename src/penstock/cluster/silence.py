"""Which workers have not said anything for too long; pure.

A worker reports its metrics several times in that time, so silence means that it stands still. Whoever listens has to
have been awake: after a pause of its own everybody gets a new chance.
"""

from __future__ import annotations

from collections.abc import Collection

LOOKS = 4
"""Looks in the time after which a worker is silent."""


class Silence:
    """`limit` and all times in seconds, monotonic. Call `look` about `LOOKS` times in `limit`."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._heard: dict[int, float] = {}
        self._looked: float | None = None
        self.silent: dict[int, float] = {}
        """Those that are silent -> since when."""

    def heard(self, worker: int, now: float) -> bool:
        """It said something; whether it was silent before."""
        self._heard[worker] = now
        return self.silent.pop(worker, None) is not None

    def look(self, workers: Collection[int], now: float) -> set[int]:
        """Those of `workers` that have just become silent; the others are forgotten."""
        asleep = self._looked is not None and now - self._looked > 2 * self.limit / LOOKS
        self._looked = now
        if asleep:
            self._heard = dict.fromkeys(self._heard, now)
        self._heard = {worker: self._heard.get(worker, now) for worker in workers}
        self.silent = {worker: since for worker, since in self.silent.items() if worker in workers}
        new = {w for w, at in self._heard.items() if now - at > self.limit and w not in self.silent}
        self.silent |= dict.fromkeys(new, now)
        return new
