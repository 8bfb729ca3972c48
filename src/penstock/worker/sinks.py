"""A sink step inside an executor: its writer as an operator, and the end of the latency measurement."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from penstock.errors import CodecError, ExchangeError, PenstockError, StepError
from penstock.flow.batch import Batch, as_rows
from penstock.flow.connector import EndOfInput, Writer
from penstock.flow.operator import Operator, StepContext
from penstock.worker.metrics import LatencyHistogram


@contextlib.contextmanager
def naming(step: str, what: str = "") -> Iterator[None]:
    """An error that does not say where it happened is told with the step's name."""
    try:
        yield
    except (CodecError, ExchangeError) as error:
        raise StepError(step, f"step {step!r}: {what}{error}") from error
    except (PenstockError, EndOfInput):
        raise
    except Exception as error:
        raise StepError(step, f"step {step!r}: {what}{type(error).__name__}: {error}") from error


class SinkOperator(Operator):
    """Hands records to a writer."""

    def __init__(self, ctx: StepContext, writer: Writer, latency: LatencyHistogram) -> None:
        super().__init__(ctx)
        self._writer, self._latency = writer, latency
        self._closed = False
        self.records = 0
        """Taken so far, dead letters included."""

    def process(self, port: int, batch: Batch) -> None:
        rows = as_rows(batch)
        records = rows.records() if self._writer.reads_records else rows.values
        with naming(self.ctx.step):
            self._writer.write(records)
        self.records += len(records)
        if batch.origin:
            self._latency.add((self.ctx.clock.time_ns() - batch.origin) / 1e9, len(records))

    def take(self, record: Any) -> None:
        """A record that did not come through the chain (a dead letter)."""
        with naming(self.ctx.step):
            self._writer.write([record])
        self.records += 1

    def advance(self, port: int, lane: int, watermark: int) -> None:
        """Event time ends here."""

    def flush(self) -> None:
        """Push out what the writer has buffered. Called now and then, also when nothing came: a part of a file may be
        due to be shown."""
        if not self._closed:
            with naming(self.ctx.step):
                self._writer.flush()

    def prepare(self, checkpoint: int) -> Any:
        """See `Writer.prepare`."""
        with naming(self.ctx.step):
            return self._writer.prepare(checkpoint)

    def commit(self, pending: Any) -> None:
        """See `Writer.commit`."""
        with naming(self.ctx.step):
            self._writer.commit(pending)

    def recover(self, pendings: Sequence[Any]) -> None:
        """See `Writer.recover`."""
        with naming(self.ctx.step):
            self._writer.recover(pendings)

    def end(self, *, well: bool) -> None:
        """The run is over: make everything visible, or leave nothing half-written."""
        if not self._closed:
            self._closed = True
            with naming(self.ctx.step):
                if well:
                    self._writer.close()
                else:
                    self._writer.abort()
