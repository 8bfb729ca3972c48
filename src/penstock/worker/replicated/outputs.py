"""What a log position emits: bodies per output channel, and per sink.

A frame ends where its log position ends, never earlier or later, so every replica cuts its output at the same places.
"""

from __future__ import annotations

from typing import Any

from penstock.exchange.frame import Kind
from penstock.flow.batch import MIN_TIME, Batch, Columns, as_rows
from penstock.flow.operator import Operator, StepContext
from penstock.placement.plan import Channel
from penstock.worker.channels import Part, join, naming_edge
from penstock.worker.payload import COLUMNS, encode_columns, encode_rows
from penstock.worker.replicated.frames import write_body
from penstock.worker.sinks import naming


class Gatherer:
    """The records of one position for one channel, and the watermark that goes with them."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.watermark = MIN_TIME
        self.told = MIN_TIME
        """The watermark that the consumer has heard."""
        self.records = 0
        """Emitted so far by this replica."""
        self.bytes = 0
        self._parts: list[Part] = []
        self._gathered = self._origin = 0
        self._bodies: list[bytes] = []

    def gather(self, part: Part, origin: int) -> None:
        """Add records."""
        if self._parts and self._parts[0].shape() != part.shape():
            self._close()
        self._parts.append(part)
        self._gathered += len(part)
        if origin and (not self._origin or origin < self._origin):
            self._origin = origin

    def send_columns(self, batch: Columns) -> None:
        """Add a columnar batch."""
        self._close()
        with naming_edge(self.channel.edge):
            payload = encode_columns(batch)
        self._put(Kind.DATA, payload, records=len(batch), origin=batch.origin, flags=COLUMNS)

    def signal(self, kind: Kind, checkpoint: int = 0) -> None:
        """A barrier or the end, behind everything gathered."""
        self._close()
        self._put(kind, checkpoint=checkpoint)

    def put(self, kind: int, payload: bytes, *, records: int = 0, origin: int = 0, flags: int = 0) -> None:
        """A frame that is ready, behind everything gathered."""
        self._close()
        self._put(kind, payload, records=records, origin=origin, flags=flags)

    def take(self) -> list[bytes]:
        """The position is done: what it emitted here."""
        self._close()
        if self.watermark != self.told:
            self._put(Kind.WATERMARK)
        bodies, self._bodies = self._bodies, []
        return bodies

    def _close(self) -> None:
        if not self._parts:
            return
        part, records, origin = join(self._parts), self._gathered, self._origin
        self._parts, self._gathered, self._origin = [], 0, 0
        with naming_edge(self.channel.edge):
            payload = encode_rows(part.values, part.keys, part.times)
        self._put(Kind.DATA, payload, records=records, origin=origin)

    def _put(
        self,
        kind: int,
        payload: bytes = b"",
        *,
        records: int = 0,
        origin: int = 0,
        checkpoint: int = 0,
        flags: int = 0,
    ) -> None:
        self.told = self.watermark
        body = write_body(
            kind, payload, watermark=self.watermark, flags=flags, origin=origin, checkpoint=checkpoint, records=records
        )
        self.records += records
        self.bytes += len(body)
        self._bodies.append(body)


class SinkGatherer(Operator):
    """A sink step in a replica: its records become output like any other; the primary alone hands them to a writer."""

    def __init__(self, ctx: StepContext) -> None:
        super().__init__(ctx)
        self.records = 0
        self._parts: list[Part] = []
        self._origin = 0
        self._bodies: list[bytes] = []

    def process(self, port: int, batch: Batch) -> None:
        rows = as_rows(batch)
        self._gather(Part(rows.values, rows.keys, None))
        if rows.origin and (not self._origin or rows.origin < self._origin):
            self._origin = rows.origin

    def letter(self, record: Any) -> None:
        """A record that did not come through the chain (a dead letter)."""
        self._gather(Part([record], None, None))

    def _gather(self, part: Part) -> None:
        if self._parts and self._parts[0].shape() != part.shape():
            self._close()
        self._parts.append(part)

    def advance(self, port: int, lane: int, watermark: int) -> None:
        """Event time ends here."""

    def barrier(self, checkpoint: int) -> None:
        """What comes after this belongs to a later durable checkpoint."""
        self._close()
        self._bodies.append(write_body(Kind.BARRIER, checkpoint=checkpoint))

    def take(self) -> list[bytes]:
        """The position is done: what it emitted here."""
        self._close()
        bodies, self._bodies = self._bodies, []
        return bodies

    def _close(self) -> None:
        if not self._parts:
            return
        part = join(self._parts)
        self._parts = []
        with naming(self.ctx.step, "what it takes cannot be kept: "):
            payload = encode_rows(part.values, part.keys, None)
        self._bodies.append(write_body(Kind.DATA, payload, origin=self._origin, records=len(part)))
        self.records += len(part)
        self._origin = 0
