"""A sink step inside an executor: its writer as an operator, and the end of the latency measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.flow.batch import Batch, as_rows
from penstock.flow.connector import Writer
from penstock.flow.operator import Operator, StepContext
from penstock.worker.metrics import LatencyHistogram


class SinkOperator(Operator):
    """Hands records to a writer."""

    def __init__(self, ctx: StepContext, writer: Writer, latency: LatencyHistogram) -> None:
        super().__init__(ctx)
        self._writer, self._latency = writer, latency
        self._closed = False

    def process(self, port: int, batch: Batch) -> None:
        rows = as_rows(batch)
        records = rows.records() if self._writer.reads_records else rows.values
        self._writer.write(records)
        if batch.origin:
            self._latency.add((self.ctx.clock.time_ns() - batch.origin) / 1e9, len(records))

    def take(self, record: Any) -> None:
        """A record that did not come through the chain (a dead letter)."""
        self._writer.write([record])

    def advance(self, port: int, lane: int, watermark: int) -> None:
        """Event time ends here."""

    def flush(self) -> None:
        """Push out what the writer has buffered. Called now and then, also when nothing came: a part of a file may be
        due to be shown."""
        if not self._closed:
            self._writer.flush()

    def prepare(self, checkpoint: int) -> Any:
        """See `Writer.prepare`."""
        return self._writer.prepare(checkpoint)

    def commit(self, pending: Any) -> None:
        """See `Writer.commit`."""
        self._writer.commit(pending)

    def recover(self, pendings: Sequence[Any]) -> None:
        """See `Writer.recover`."""
        self._writer.recover(pendings)

    def end(self, *, well: bool) -> None:
        """The run is over: make everything visible, or leave nothing half-written."""
        if not self._closed:
            self._closed = True
            if well:
                self._writer.close()
            else:
                self._writer.abort()
