"""The unit of everything inside the data plane: records that travel together.

A batch is either `Rows` (a list of plain Python records) or `Columns` (a Polars frame). Each belongs to one
**lane**: an ordered origin inside an executor (a source partition, or an input channel). Watermarks are kept per lane
and combined by their minimum, so reading two ordered partitions in turn never makes either of them late.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import polars as pl

MIN_TIME = -(2**62)
"""The watermark of a lane that has been opened and has said nothing yet."""
IDLE = 2**62
"""Not a time: this lane is silent for now and must not hold the others back."""
END_TIME = 2**62 + 1
"""The watermark of a lane that is finished: nothing will ever come again."""


class Keyed(NamedTuple):
    """A record with its key, as keyed steps emit it."""

    key: Any
    value: Any


@dataclass(slots=True)
class Rows:
    """Plain records in order.

    `keys`, `values` and `times` are parallel. `keys is None` means that the stream is not keyed; otherwise record i is
    `Keyed(keys[i], values[i])`; `values is keys` is allowed and is cheap to send. `times` are event times in
    milliseconds since 1970 UTC. `origin` is `Clock.time_ns()` when the oldest record entered the flow (0 = unknown).
    The lists belong to the batch's receiver; a step that sends one batch to several outputs must not change it.
    """

    values: list[Any]
    keys: list[Hashable] | None = None
    times: list[int] | None = None
    lane: int = 0
    origin: int = 0

    def __len__(self) -> int:
        return len(self.values)

    def records(self) -> list[Any]:
        """The records as steps and users see them: plain values, or `Keyed` pairs when the stream is keyed."""
        if self.keys is None:
            return self.values
        # As `Keyed(key, value)` for each, without the Python frame of a named tuple's constructor.
        return list(map(tuple.__new__, repeat(Keyed), zip(self.keys, self.values, strict=True)))

    def cut(self, size: int) -> tuple[Rows, Rows]:
        """The first `size` records, and the rest."""
        halves = []
        for part in (slice(None, size), slice(size, None)):
            values = self.values[part]
            keys = None if self.keys is None else values if self.keys is self.values else self.keys[part]
            times = None if self.times is None else self.times[part]
            halves.append(Rows(values, keys, times, self.lane, self.origin))
        return halves[0], halves[1]

    def derive(self, values: list[Any], *, keys: list[Hashable] | None = None, times: list[int] | None = None) -> Rows:
        """New records that came out of this batch: same lane, same origin."""
        return Rows(values, keys, times, self.lane, self.origin)


@dataclass(slots=True)
class Columns:
    """Records as a Polars frame. `key` and `time` name columns, when the stream is keyed or has event times (ms)."""

    frame: pl.DataFrame
    key: str | None = None
    time: str | None = None
    lane: int = 0
    origin: int = 0

    def __len__(self) -> int:
        return self.frame.height

    def rows(self) -> Rows:
        """The same records as dictionaries."""
        values = self.frame.to_dicts()
        keys = None if self.key is None else self.frame[self.key].to_list()
        times = None if self.time is None else self.frame[self.time].to_list()
        return Rows(values, keys, times, self.lane, self.origin)


Batch: TypeAlias = Rows | Columns


def as_rows(batch: Batch) -> Rows:
    """The batch as `Rows`, converting a columnar one."""
    return batch if isinstance(batch, Rows) else batch.rows()
