"""Windows in event time: tumbling, sliding (hopping) and session windows. All times are in milliseconds.

Tumbling and sliding windows are `[start, end)` with starts at multiples of their step since 1970 UTC; windows at the
edge of the data are kept although they are only partly filled. A session ends when a key has been silent for longer
than the gap: `[first, last + gap]`; a record at exactly `last + gap` still belongs to it.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from dataclasses import dataclass
from typing import TypeAlias

from penstock.errors import FlowError
from penstock.flow.check import caller_site

__all__ = ["Duration", "Session", "Sliding", "Tumbling", "Window", "duration_ms", "session", "sliding", "tumbling"]

Duration: TypeAlias = str | int | float | dt.timedelta
"""`"10s"`, `"500ms"`, `"1m30s"`, `"2h"`, `"1d"`; a number of seconds; or a `timedelta`."""

_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*")


def duration_ms(duration: Duration, *, what: str = "duration", least: int = 1) -> int:
    """A duration in whole milliseconds. Raises `FlowError` when it cannot be read, is not whole milliseconds, or is
    below `least` milliseconds; `what` names it in the error."""
    amount = _amount(duration)
    if amount is None or not math.isfinite(amount):
        raise FlowError(
            None,
            f"{what} {duration!r} is not a duration",
            remedy="write for example '10s', '500ms', '1m30s', '2h' or '1d' (units: ms, s, m, h, d), "
            "or a number of seconds",
            site=caller_site(),
        )
    ms = round(amount)
    if abs(amount - ms) > 1e-6 or ms < least:
        raise FlowError(
            None,
            f"{what} {duration!r} must be whole milliseconds, at least {least} ms",
            remedy="give a longer one",
            site=caller_site(),
        )
    return ms


def _amount(duration: Duration) -> float | None:
    if isinstance(duration, dt.timedelta):
        return duration / dt.timedelta(milliseconds=1)
    if isinstance(duration, (int, float)) and not isinstance(duration, bool):
        return duration * 1000
    if not isinstance(duration, str):
        return None
    text, at, total = duration.strip().lower(), 0, 0.0
    while at < len(text):
        part = _PART.match(text, at)
        if part is None:
            return None
        total += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    return total if text else None


@dataclass(frozen=True)
class Sliding:
    """Windows of `size_ms`, a new one every `slide_ms`."""

    size_ms: int
    slide_ms: int

    @property
    def pane_ms(self) -> int:
        """The longest pieces of time that lie wholly inside or outside of every window."""
        return math.gcd(self.size_ms, self.slide_ms)

    def last_end(self, time: int) -> int:
        """When the last window that holds `time` ends."""
        return time - time % self.slide_ms + self.size_ms

    def first_end(self, time: int, after: int) -> int:
        """When the first window that holds `time` and ends after `after` ends (given that there is one)."""
        latest_over = max(time, after) - self.size_ms
        return (latest_over // self.slide_ms + 1) * self.slide_ms + self.size_ms

    def starts(self, time: int) -> range:
        """The starts of all windows that hold `time`."""
        return range(self.first_end(time, time) - self.size_ms, time + 1, self.slide_ms)


@dataclass(frozen=True)
class Tumbling(Sliding):
    """Windows of `size_ms`, one after the other."""


@dataclass(frozen=True)
class Session:
    """Windows that grow until their key has been silent for longer than `gap_ms`."""

    gap_ms: int


Window: TypeAlias = Tumbling | Sliding | Session


def tumbling(size: Duration) -> Tumbling:
    """Windows of `size`, one after the other: every record is in exactly one."""
    ms = duration_ms(size, what="window size")
    return Tumbling(ms, ms)


def sliding(size: Duration, every: Duration) -> Sliding:
    """Windows of `size`, a new one `every` so often: a record is in `size / every` of them."""
    size_ms, slide_ms = duration_ms(size, what="window size"), duration_ms(every, what="every")
    if slide_ms > size_ms:
        raise FlowError(
            None,
            f"sliding windows of {size!r} every {every!r} leave gaps, whose records would be in no window",
            remedy="make `every` at most the size, or filter the records first",
        )
    return Sliding(size_ms, slide_ms)


def session(gap: Duration) -> Session:
    """Windows per key that end when the key has been silent for longer than `gap`."""
    return Session(duration_ms(gap, what="session gap"))
