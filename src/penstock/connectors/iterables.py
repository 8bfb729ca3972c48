"""`iterable`: records from a list or from a function of the author's that gives an iterable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from penstock.errors import ConnectorError, UsageError
from penstock.flow.connector import ConnectorContext, EndOfInput, Reader, Source


@dataclass(frozen=True)
class Iterables(Source):
    """Made by `iterable`."""

    records: Sequence[Any] | Callable[[], Iterable[Any]]
    bounded: bool = True

    def partitions(self) -> Sequence[str]:
        """One."""
        return ["all"]

    def open(self, partition: str, offset: Any | None, ctx: ConnectorContext) -> Reader:
        """Read from the beginning, or past the first `offset` records."""
        return IterableReader(self.records, int(offset or 0))

    def describe(self) -> str:
        """What it comes from."""
        if callable(self.records):
            return f"iterable {getattr(self.records, '__qualname__', type(self.records).__name__)}"
        return f"{len(self.records)} records in memory"


def iterable(records: Iterable[Any] | Callable[[], Iterable[Any]], *, bounded: bool = True) -> Iterables:
    """Records of a list (or any collection that can be read again), or of the iterable that a function returns.

    A restart reads again and skips what was processed, so the function has to give the same records each time, and
    its iterator must not wait: a source that waits is written as a `Reader` (see docs/connectors.md).
    Raises `UsageError` for a bare iterator or generator, which can be read only once.
    """
    if callable(records):
        return Iterables(records, bounded)
    if isinstance(records, (str, bytes)) or not isinstance(records, Iterable):
        raise UsageError(f"iterable: a list of records or a function was expected, not {type(records).__name__}")
    if isinstance(records, Iterator):
        raise UsageError(
            f"iterable: a {type(records).__name__} can be read only once, so the flow could not be started again",
            remedy="pass the function that makes it: iterable(fn) instead of iterable(fn())",
        )
    return Iterables(records if isinstance(records, Sequence) else list(records), bounded)


class IterableReader(Reader):
    """The offset is the number of records given."""

    def __init__(self, records: Sequence[Any] | Callable[[], Iterable[Any]], skip: int) -> None:
        self._given = skip
        self._total = None if callable(records) else len(records)
        if callable(records):
            made = records()
            if not isinstance(made, Iterable):
                raise ConnectorError(f"iterable: the function returned a {type(made).__name__}, which is not iterable")
            self._iterator = iter(made)
            skipped = sum(1 for _ in islice(self._iterator, skip))
            if skipped < skip:
                raise ConnectorError(
                    f"iterable: {skip} records were read before the restart, but the function now gives {skipped}",
                    remedy="the function has to give the same records each time",
                )
        else:
            self._iterator = islice(iter(records), skip, None)

    def read(self, limit: int) -> list[Any]:
        """The next records."""
        batch = list(islice(self._iterator, limit))
        if not batch:
            raise EndOfInput
        self._given += len(batch)
        return batch

    def offset(self) -> Any:
        """Records given so far."""
        return self._given

    def progress(self) -> float | None:
        """Given share of a list."""
        if self._total is None:
            return None
        return min(1.0, self._given / self._total) if self._total else 1.0
