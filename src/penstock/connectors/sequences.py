"""`sequence`: whole numbers, as fast as they are taken or at a steady rate. For examples, tests and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from penstock.errors import UsageError
from penstock.flow.connector import ConnectorContext, EndOfInput, Reader, Source


@dataclass(frozen=True)
class Numbers(Source):
    """Made by `sequence`."""

    n: int | None
    rate: float | None
    start: int
    shards: int
    bounded: bool = True

    def partitions(self) -> Sequence[str]:
        """The shards' numbers."""
        return [str(shard) for shard in range(self.shards)]

    def open(self, partition: str, offset: Any | None, ctx: ConnectorContext) -> NumberReader:
        """Every `shards`-th number."""
        return NumberReader(self, int(partition), int(offset or 0), ctx)

    def describe(self) -> str:
        """How many and how fast."""
        many = "numbers without end" if self.n is None else f"{self.n} numbers"
        return many if self.rate is None else f"{many} at {self.rate:g}/s"


def sequence(n: int | None = None, *, rate: float | None = None, start: int = 0, shards: int = 1) -> Numbers:
    """The numbers `start`, `start + 1`, …: `n` of them, or without end.

    `rate` is in records per second over all shards together, by the run's clock; a flow that falls behind gets the
    missed ones as fast as it takes them. `shards` is the number of partitions: shard i gives every `shards`-th number.
    Raises `UsageError` for numbers out of range.
    """
    if n is not None and n < 0:
        raise UsageError(f"sequence(n={n}): 0 or more records were expected")
    if rate is not None and not rate > 0:
        raise UsageError(f"sequence(rate={rate}): records per second greater than 0 were expected")
    if shards < 1:
        raise UsageError(f"sequence(shards={shards}): 1 or more were expected")
    return Numbers(n, rate, start, shards, n is not None)


class NumberReader(Reader):
    """One shard. The offset is how many numbers of the shard were given."""

    def __init__(self, source: Numbers, shard: int, given: int, ctx: ConnectorContext) -> None:
        self._clock = ctx.clock
        self._step = source.shards
        self._first = source.start + shard
        self._total = None if source.n is None else len(range(shard, source.n, source.shards))
        self._rate = None if source.rate is None else source.rate / source.shards
        self._given = self._resumed_at = given
        self._began = ctx.clock.monotonic()

    def read(self, limit: int) -> list[Any]:
        """The numbers that are due."""
        if self._total is not None and self._given >= self._total:
            raise EndOfInput
        count = min(limit, self._due())
        first = self._first + self._given * self._step
        self._given += count
        return list(range(first, first + count * self._step, self._step))

    def _due(self) -> int:
        left = 2**62 if self._total is None else self._total - self._given
        if self._rate is None:
            return left
        elapsed = self._clock.monotonic() - self._began
        return max(0, min(left, self._resumed_at + int(elapsed * self._rate + 1e-6) - self._given))

    def next_at(self) -> float | None:
        """When the next number is due."""
        if self._rate is None:
            return None
        return self._began + (self._given - self._resumed_at + 1) / self._rate

    def offset(self) -> Any:
        """Numbers given so far."""
        return self._given

    def lag(self) -> int | None:
        """Numbers that are due and not taken."""
        return self._due() if self._rate is not None else None

    def progress(self) -> float | None:
        """Given share of all numbers."""
        if self._total is None:
            return None
        return self._given / self._total if self._total else 1.0
