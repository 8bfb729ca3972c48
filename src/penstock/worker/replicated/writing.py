"""The sinks of a primary: released output goes to writers here, as to any consumer, and is confirmed.

A transactional writer shows records when the durable checkpoint that covers them is complete: only then they are safe.
Others show them as they come: they are safe once they have been pushed out. A promoted replica opens its own writers:
they complete what the last complete checkpoint holds, and get again whatever is not safe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from penstock.clock import Clock
from penstock.exchange.frame import Kind
from penstock.flow.batch import Rows
from penstock.flow.connector import Writer
from penstock.worker.metrics import LatencyHistogram
from penstock.worker.payload import decode_batch
from penstock.worker.replicated.frames import read_body
from penstock.worker.sinks import naming


class SinkLine:
    """One sink: a writer at the end of an output channel. `prepared` hears (checkpoint, what the writer prepared)."""

    def __init__(
        self,
        step: str,
        writer: Writer,
        *,
        transactional: bool,
        latency: LatencyHistogram,
        clock: Clock,
        prepared: Callable[[str, int, Any], None],
    ) -> None:
        self.step, self.writer, self.transactional = step, writer, transactional
        self._latency, self._clock, self._prepared = latency, clock, prepared
        self.next_seq = 0
        """The next frame that it will take."""
        self.safe = -1
        self.records = 0
        self.barriers: dict[int, int] = {}
        """Durable checkpoint -> the frame that ends it."""
        self._skipping: int | None = None
        self._closed = False

    def begin_at(self, next_seq: int, skipping: int | None = None) -> None:
        """Everything before is safe: a promoted replica goes on here. `skipping`: also everything until the barrier of
        that checkpoint, which is still to come."""
        self.next_seq, self.safe, self._skipping = next_seq, next_seq - 1, skipping

    def replayed(self, seq: int, data: bytes) -> None:
        """A frame was emitted: if it is the barrier that skipping waits for, and lies before where this line begins, it
        will never come."""
        if self._skipping is not None and seq < self.next_seq:
            body = read_body(data)
            if body.kind == Kind.BARRIER and body.checkpoint >= self._skipping:
                self._skipping = None

    def take(self, seq: int, data: bytes) -> bool:
        """A frame was released; whether it is a new one. Later ones than the next do not come: they are in order."""
        if seq != self.next_seq:
            return False
        self.next_seq += 1
        body = read_body(data)
        if self._skipping is not None:
            if body.kind == Kind.BARRIER and body.checkpoint >= self._skipping:
                self._skipping, self.safe = None, seq
            return True
        if body.kind == Kind.BARRIER:
            self.barriers[body.checkpoint] = seq
            if self.transactional:
                with naming(self.step):
                    pending = self.writer.prepare(body.checkpoint)
                self._prepared(self.step, body.checkpoint, pending)
            else:
                self.push_out()
                self._prepared(self.step, body.checkpoint, None)
            return True
        if self.writer.reads_records:
            batch = decode_batch(body.payload, body.flags, 0, body.origin)
            assert isinstance(batch, Rows)
            records = batch.records()
        else:
            records = [None] * body.records
        with naming(self.step):
            self.writer.write(records)
        self.records += body.records
        if body.origin:
            self._latency.add((self._clock.time_ns() - body.origin) / 1e9, body.records)
        return True

    def push_out(self) -> None:
        """Push out what the writer has buffered; without checkpoints that makes it safe."""
        if self._closed:
            return
        with naming(self.step):
            self.writer.flush()
        if not self.transactional:
            self.safe = self.next_seq - 1

    def commit(self, checkpoint: int, pending: Any) -> None:
        """A durable checkpoint is complete."""
        if self.transactional:
            with naming(self.step):
                self.writer.commit(pending)
        seq = self.barriers.get(checkpoint)
        if seq is not None:
            self.safe = max(self.safe, seq)
            self.barriers = {number: at for number, at in self.barriers.items() if number > checkpoint}

    def end(self, *, well: bool) -> None:
        """It is over here: `well` when all input ended and everything may be shown."""
        if not self._closed:
            self._closed = True
            with naming(self.step):
                if well:
                    self.writer.close()
                else:
                    self.writer.abort()
