"""Event time: how watermarks of many lanes become one, and how a value becomes milliseconds since 1970 UTC.

A watermark `W` on a lane says: no record with an event time below `W` is expected there any more. It is a promise of
the kind "as far as I have seen"; a record that breaks it is *late*, and the steps that care (windows, windowed joins)
count it and send it to their `late` output.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from typing import Any, SupportsIndex
from zlib import crc32

from penstock.flow.batch import END_TIME, IDLE, MIN_TIME

__all__ = ["Tracker", "own_lane", "to_ms"]

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MILLISECOND = dt.timedelta(milliseconds=1)
_LIMIT = 2**61
"""Times are smaller than this in size, so that no window arithmetic meets the markers of `penstock.flow.batch`."""


class Tracker:
    """A watermark per (port, lane), and their combination.

    The combined watermark is the least of the lanes that are neither idle nor finished; it never goes back, also when
    a lane is opened late or an idle one returns. It is `MIN_TIME` while a lane has said nothing (or none is open),
    `IDLE` when every lane that is not finished is idle, and `END_TIME` when all are finished.
    """

    __slots__ = ("_idle", "_lanes", "_reached", "current")

    def __init__(self) -> None:
        self._lanes: dict[tuple[int, int], int] = {}
        self._idle: set[tuple[int, int]] = set()
        self._reached = MIN_TIME
        self.current = MIN_TIME
        """What `update` said last."""

    def update(self, port: int, lane: int, watermark: int) -> int:
        """Take what `lane` says (`MIN_TIME`, `IDLE` and `END_TIME` included) and return the combined watermark."""
        at = (port, lane)
        if watermark == IDLE:
            self._lanes.setdefault(at, MIN_TIME)
            self._idle.add(at)
        else:
            self._idle.discard(at)
            self._lanes[at] = max(watermark, self._lanes.get(at, MIN_TIME))
        return self._combine()

    def wake(self, port: int, lane: int) -> int:
        """A batch came on `lane`: it is idle no longer, and counts again with the watermark it had."""
        if (port, lane) in self._idle:
            self._idle.discard((port, lane))
            return self._combine()
        return self.current

    def _combine(self) -> int:
        live = [mark for at, mark in self._lanes.items() if mark != END_TIME and at not in self._idle]
        if live:
            self._reached = max(self._reached, min(live))
            self.current = self._reached
        else:
            self.current = IDLE if self._idle else END_TIME
        return self.current


def own_lane(step: str) -> int:
    """The lane on which a step sends what it makes by itself, such as closed windows: negative, so that it is none of
    a source or a channel, and different for different steps, so that two of them may meet in a merge."""
    return -1 - crc32(step.encode())


def to_ms(value: Any) -> int:
    """An event time as whole milliseconds since 1970 UTC, rounded down.

    Taken are: an int or a float (milliseconds), a `datetime` (without a zone: UTC), a `date` (its midnight, UTC), and a
    string in ISO 8601. Raises `TypeError` or `ValueError` that says what was received.
    """
    kind = type(value)
    if kind is int:
        ms: int = value
    elif (convert := _CONVERSIONS.get(kind)) is not None:
        ms = convert(value)
    else:
        ms = _by_class(value)
    if -_LIMIT < ms < _LIMIT:
        return ms
    raise ValueError(f"{value!r} is too large for a time in milliseconds since 1970")


def _from_float(value: float) -> int:
    if not math.isfinite(value):
        raise ValueError(f"{value!r} is not an event time")
    return math.floor(value)


def _from_datetime(value: dt.datetime) -> int:
    if value.tzinfo is None:
        value = value.replace(tzinfo=dt.UTC)
    return (value - _EPOCH) // _MILLISECOND


def _from_date(value: dt.date) -> int:
    return (value.toordinal() - 719_163) * 86_400_000


def _from_text(value: str) -> int:
    try:
        return _from_datetime(dt.datetime.fromisoformat(value.strip()))
    except ValueError:
        raise ValueError(
            f"{value!r} is not an ISO 8601 time; for another format, or a number kept as text, give a function "
            "that returns a datetime or milliseconds"
        ) from None


_CONVERSIONS: dict[type, Callable[[Any], int]] = {
    float: _from_float,
    str: _from_text,
    dt.datetime: _from_datetime,
    dt.date: _from_date,
}


def _by_class(value: Any) -> int:
    """Subclasses of the known types, such as those of NumPy and pandas."""
    if not isinstance(value, bool):
        for kind in (dt.datetime, dt.date, float, str):
            if isinstance(value, kind):
                return _CONVERSIONS[kind](value)
        if isinstance(value, SupportsIndex):
            return int(value)
    kind_name = type(value).__name__
    raise TypeError(
        f"an event time must be milliseconds, a datetime or an ISO 8601 string, not {kind_name} ({value!r:.80})"
    )
