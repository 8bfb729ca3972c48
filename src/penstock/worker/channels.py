"""The two ends of a channel inside a worker: sequence and credit are pure (`exchange.channel`), bytes by `Transport`.

Batches form by themselves. A channel gathers records until a batch is full; what is gathered is sent earlier when the
executor has nothing else to do **and** few frames are under way. So an idle system sends every record at once, and a
loaded one sends full batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, Protocol

from penstock.exchange.channel import Receiver, Sender
from penstock.exchange.frame import Epoch, Header, Kind, encode
from penstock.exchange.keys import Router
from penstock.flow.batch import IDLE, MIN_TIME, Batch, Columns, Rows
from penstock.flow.event_time import Tracker
from penstock.flow.graph import EdgeShape
from penstock.flow.operator import Outlet
from penstock.placement.plan import Channel
from penstock.worker.payload import COLUMNS, encode_columns, encode_rows
from penstock.worker.sinks import naming

EAGER_FRAMES = 4
"""Partial batches wait while so many frames of the channel are not acknowledged."""
_LOCAL_RECORD_BYTES = 64
"""What a record counts against the credit when it does not leave the process."""


class Item(NamedTuple):
    """A frame that waits in an executor's queue. `payload` is a batch already when it came from the same worker."""

    inbound: Inbound
    kind: Kind
    payload: memoryview | Batch | None
    header: Header
    size: int


@dataclass(slots=True, eq=False)
class Inbound:
    """The consumer's end of one channel."""

    channel: Channel
    lane: int
    entry: Outlet
    receiver: Receiver
    acknowledge: Callable[[Inbound, int], None]
    """Send an ACK for everything up to a sequence number."""
    watermark: int = MIN_TIME
    ended: bool = False
    held: deque[Item] = field(default_factory=deque)
    """Frames behind a barrier that other channels have not delivered yet."""

    def consumed(self, item: Item) -> None:
        """An accepted frame was processed."""
        if item.header.epoch == self.receiver.epoch:
            seq = self.receiver.consumed(item.header.seq, item.size)
            if seq is not None:
                self.acknowledge(self, seq)

    def ack_frame(self, number: int, seq: int) -> bytes:
        """The frame that tells the producer that everything up to `seq` is consumed."""
        term, counter = self.receiver.epoch
        return encode(Header(Kind.ACK, number, term, counter, seq))

    def idle(self) -> None:
        """Nothing else to do: acknowledge what was consumed."""
        seq = self.receiver.flush_ack()
        if seq is not None:
            self.acknowledge(self, seq)

    def advance(self, watermark: int) -> None:
        """The producer's watermark moved; it never goes back."""
        if watermark == IDLE or watermark > self.watermark or self.watermark == IDLE:
            self.watermark = watermark
            self.entry.advance(self.lane, watermark)


@dataclass(slots=True)
class Part:
    """Records gathered at once."""

    values: list[Any] | None
    keys: list[Any] | None
    times: list[int] | None

    def shape(self) -> tuple[bool, bool, bool, bool]:
        """Parts of equal shape can be joined."""
        return self.values is None, self.values is self.keys, self.keys is None, self.times is None

    def __len__(self) -> int:
        return len(self.values if self.values is not None else self.keys or ())


def join(parts: list[Part]) -> Part:
    """Parts of equal shape as one."""
    if len(parts) == 1:
        return parts[0]
    no_values, same, no_keys, no_times = parts[0].shape()
    keys = None if no_keys else list(chain.from_iterable(part.keys or () for part in parts))
    values = keys if same else None if no_values else list(chain.from_iterable(part.values or () for part in parts))
    times = None if no_times else list(chain.from_iterable(part.times or () for part in parts))
    return Part(values, keys, times)


@dataclass(slots=True, eq=False)
class Outbound:
    """The producer's end of one channel, and the records gathered for its next frame."""

    channel: Channel
    sender: Sender
    deliver: Callable[[Outbound, bytes | Item], None]
    """Hand a frame to the consumer: bytes through the transport, an `Item` into an executor of this process."""
    target: Inbound | None
    """The other end, when it is in this process."""
    stalled: set[Outbound]
    """Shared by the executor's channels: those without credit."""
    limit: int
    """Records in a full batch."""
    number: int
    """The channel's number in frames: model and channel."""
    parts: list[Part] = field(default_factory=list)
    gathered: int = 0
    origin: int = 0
    watermark: int = MIN_TIME
    told: int = MIN_TIME
    """The watermark that the consumer has heard."""
    lost: int = 0
    """Records that were with a consumer when it died."""

    @property
    def in_flight(self) -> int:
        """Frames that are not acknowledged."""
        return self.sender.next_seq() - self.sender.acked - 1

    def gather(self, part: Part, origin: int) -> None:
        """Add records; sends when a batch is full."""
        if self.parts and self.parts[0].shape() != part.shape():
            self.flush()
        self.parts.append(part)
        self.gathered += len(part)
        if origin and (not self.origin or origin < self.origin):
            self.origin = origin
        if self.gathered >= self.limit:
            self.flush()

    def flush(self) -> None:
        """Send what is gathered, or the watermark alone if only that moved."""
        if self.parts:
            part, origin = join(self.parts), self.origin
            self.parts, self.gathered, self.origin = [], 0, 0
            if self.target is not None:
                values = part.values if part.values is not None else part.keys
                rows = Rows(values or [], part.keys, part.times, self.target.lane, origin)
                self._put(Kind.DATA, rows, len(part), origin)
            else:
                with naming_edge(self.channel.edge):
                    payload = encode_rows(part.values, part.keys, part.times)
                self._put(Kind.DATA, payload, len(part), origin)
        elif self.watermark != self.told:
            self._put(Kind.WATERMARK)

    def flush_when_quiet(self) -> None:
        """As `flush`, unless the consumer is busy with earlier frames."""
        if (self.parts or self.watermark != self.told) and self.in_flight < EAGER_FRAMES:
            self.flush()

    def send_columns(self, batch: Columns) -> None:
        """Send a columnar batch as a frame of its own."""
        self.flush()
        if self.target is not None:
            moved = Columns(batch.frame, batch.key, batch.time, self.target.lane, batch.origin)
            self._put(Kind.DATA, moved, len(batch), batch.origin)
        else:
            with naming_edge(self.channel.edge):
                payload = encode_columns(batch)
            self._put(Kind.DATA, payload, len(batch), batch.origin, flags=COLUMNS)

    def signal(self, kind: Kind, checkpoint: int = 0) -> None:
        """Send a barrier or the end, behind everything gathered."""
        self.flush()
        self._put(kind, checkpoint=checkpoint)

    def _put(
        self,
        kind: Kind,
        payload: bytes | Batch | None = None,
        records: int = 0,
        origin: int = 0,
        checkpoint: int = 0,
        flags: int = 0,
    ) -> None:
        sender = self.sender
        term, counter = sender.epoch
        self.told = self.watermark
        header = Header(
            kind, self.number, term, counter, sender.next_seq(), self.watermark, origin, checkpoint, records, flags
        )
        if self.target is not None:
            assert not isinstance(payload, bytes)
            size = 1 + _LOCAL_RECORD_BYTES * records
            sender.sent(size, records)
            self.deliver(self, Item(self.target, kind, payload, header, size))
        else:
            assert payload is None or isinstance(payload, bytes)
            frame = encode(header, payload or b"")
            sender.sent(len(frame), records)
            self.deliver(self, frame)
        if not sender.ready:
            self.stalled.add(self)

    def acknowledged(self, epoch: Epoch, seq: int) -> None:
        """The consumer has consumed everything up to `seq`."""
        self.sender.on_ack(epoch, seq)
        if self.sender.ready:
            self.stalled.discard(self)

    def restart(self, epoch: Epoch) -> None:
        """The consumer (or this producer) has a new incarnation; what the old one had not confirmed is lost."""
        self.lost += self.sender.lost().records
        self.sender.reset(epoch)
        self.stalled.discard(self)
        self.told = MIN_TIME


def naming_edge(edge: EdgeShape) -> AbstractContextManager[None]:
    """What cannot travel is told with the steps between which it was to travel."""
    return naming(edge.source_step, f"its results cannot go on to {edge.target_step!r}: ")


class Gathers(Protocol):
    """The producer's end of one channel, as an `EdgeOutlet` uses it."""

    watermark: int

    def gather(self, part: Part, origin: int) -> None:
        """Add records."""
        ...

    def send_columns(self, batch: Columns) -> None:
        """Send a columnar batch as a frame of its own."""
        ...


class EdgeOutlet:
    """Where the results of a step leave the executor: one edge of the plan, many channels."""

    def __init__(self, edge: EdgeShape, outbounds: Sequence[Gathers], index: int) -> None:
        self._edge = edge
        self._needs_values = edge.needs_values
        self._outbounds = outbounds
        self._router = Router(len(outbounds))
        self._tracker = Tracker()
        self._watermark = MIN_TIME
        self.turn = index
        """Counts the batches without keys, which go to the consumers in turn."""
        self._pipe = edge.kind == "pipe"
        self._single = len(outbounds) == 1

    def send(self, batch: Batch) -> None:
        """Route a batch by key; an unkeyed one goes to the consumers in turn."""
        self._tell(self._tracker.wake(0, batch.lane))
        if isinstance(batch, Columns):
            self._send_columns(batch)
            return
        values = batch.values if self._needs_values else None
        if self._single:
            self._outbounds[0].gather(Part(values, batch.keys, batch.times), batch.origin)
        elif batch.keys is None:
            self._next().gather(Part(values, None, batch.times), batch.origin)
        else:
            with naming_edge(self._edge):
                parts = self._router.split(batch.keys, values, batch.times)
            for executor, keys, own, times in parts:
                self._outbounds[executor].gather(Part(own, keys, times), batch.origin)

    def _send_columns(self, batch: Columns) -> None:
        if self._single:
            self._outbounds[0].send_columns(batch)
        elif batch.key is None:
            self._next().send_columns(batch)
        else:
            keys = batch.frame[batch.key].to_list()
            places = list(range(len(keys)))
            with naming_edge(self._edge):
                parts = self._router.split(keys, places, None)
            for executor, _, chosen, _ in parts:
                part = Columns(batch.frame[chosen], batch.key, batch.time, batch.lane, batch.origin)
                self._outbounds[executor].send_columns(part)

    def _next(self) -> Gathers:
        self.turn += 1
        return self._outbounds[self.turn % len(self._outbounds)]

    def advance(self, lane: int, watermark: int) -> None:
        """The edge's watermark is the least of its lanes; it travels with the next frame."""
        self._tell(self._tracker.update(0, lane, watermark))

    def _tell(self, watermark: int) -> None:
        if watermark != self._watermark:
            self._watermark = watermark
            for outbound in self._outbounds:
                outbound.watermark = watermark
