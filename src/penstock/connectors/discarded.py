"""`null`: a sink that takes records and does nothing, for benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from penstock.flow.connector import ConnectorContext, Sink, Writer


@dataclass(frozen=True)
class Discard(Sink):
    """Made by `null`."""

    def open(self, ctx: ConnectorContext) -> Writer:
        """A writer that forgets."""
        return DiscardWriter()

    def describe(self) -> str:
        """Its name."""
        return "null"


def null() -> Discard:
    """Drop every record on purpose."""
    return Discard()


class DiscardWriter(Writer):
    """Counts and forgets."""

    reads_records: ClassVar[bool] = False

    def __init__(self) -> None:
        self.written = 0

    def write(self, records: list[Any]) -> None:
        """Forget the records."""
        self.written += len(records)
