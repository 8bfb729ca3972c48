"""Connectors that can be read and written under one name, such as `ndjson("x")`."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, overload

from penstock.flow.connector import ConnectorContext, Reader, Sink, Source, Writer


class SourceAndSink(Source, Sink):
    """A source and a sink in one description. `Source.open` takes three arguments and `Sink.open` one, which is how
    the two are told apart; subclasses write `reader` and `writer`."""

    @overload
    def open(self, partition: str, offset: Any | None, ctx: ConnectorContext) -> Reader: ...

    @overload
    def open(self, ctx: ConnectorContext) -> Writer: ...

    def open(self, *args: Any, **named: Any) -> Reader | Writer:
        """Open a partition for reading (`partition, offset, ctx`), or this executor's writer (`ctx`)."""
        if len(args) + len(named) == 1:
            return self.writer(*args, **named)
        return self.reader(*args, **named)

    @abstractmethod
    def reader(self, partition: str, offset: Any | None, ctx: ConnectorContext) -> Reader:
        """`Source.open`."""

    @abstractmethod
    def writer(self, ctx: ConnectorContext) -> Writer:
        """`Sink.open`."""
