"""Which keys an executor gets most, for the decision to split it."""

from __future__ import annotations

from typing import Any

from penstock.exchange.split.load import KeyLoad, KeyReport
from penstock.flow.batch import Batch, Columns

_SPAN = 2.0
"""Seconds that one measurement lasts."""


class SeenKeys:
    """Counts; `report` gives the latest measurement that is complete."""

    def __init__(self) -> None:
        self._load = KeyLoad()
        self._since: float | None = None
        self._latest = KeyReport({}, None, None)

    def seen(self, batch: Batch) -> None:
        """A batch came in."""
        if isinstance(batch, Columns):
            if batch.key is not None:
                self._load.observe(batch.frame[batch.key].to_list())
        elif batch.keys is not None:
            self._load.observe(batch.keys)

    def report(self, now: float) -> KeyReport:
        """Records per key group, and the hottest key."""
        if self._since is None:
            self._since = now
        elif now >= self._since + _SPAN:
            self._latest, self._since = self._load.report(now - self._since), now
        return self._latest


def plain(key: Any) -> Any:
    """A key as everybody can read it."""
    return key if isinstance(key, str | int | float | bool) else repr(key)[:200]
