"""`push`: records that arrive over HTTP or the client library, bounded in bytes, each (client, seq) once."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from penstock.errors import UsageError
from penstock.flow.connector import ConnectorContext, Reader, Source
from penstock.settings import RunSettings

WINDOW = 64
"""Numbers of one client may overtake each other by less than this; older ones count as repeats."""
CLIENTS = 4096
"""Clients remembered, the most recently active ones."""


@dataclass(frozen=True)
class Pushed(Source):
    """Made by `push`."""

    max_bytes: int
    bounded: bool = False
    replayable: bool = False
    accepts_push: bool = True

    def partitions(self) -> Sequence[str]:
        """One, when one executor reads."""
        return self.shares(1)

    def shares(self, executors: int) -> Sequence[str]:
        """One lane per executor. Records of one (client, seq) belong to one lane: only that one knows of a repeat."""
        return [_lane(index) for index in range(executors)]

    def restored(self, partition: str, offsets: Mapping[str, Any], executors: int) -> Any | None:
        """The lane's own memory. With another number of executors a client may meet another lane than before, so that
        every lane then gets the memory of all."""
        if not offsets or set(offsets) == set(self.shares(executors)):
            return offsets.get(partition)
        return _merged(offsets)

    def open(self, partition: str, offset: Any | None, ctx: ConnectorContext) -> PushReader:
        """An empty queue that remembers which pushes the checkpoint covers."""
        return PushReader(self.max_bytes, offset, ctx)

    def describe(self) -> str:
        """The bound."""
        return f"push, at most {self.max_bytes} bytes waiting"


def push(*, max_bytes: int = RunSettings().push_queue_bytes) -> Pushed:
    """Records that are pushed in. At most about `max_bytes` (as msgpack) wait; then a push is refused, which the HTTP
    gateway answers with 429. A repeat of (client, seq) is taken once; see `PushReader`. Raises `UsageError`."""
    if max_bytes < 1:
        raise UsageError(f"push(max_bytes={max_bytes}): bytes greater than 0 were expected")
    return Pushed(max_bytes)


def _lane(index: int) -> str:
    return f"push-{index}" if index else "push"


def _merged(offsets: Mapping[str, Any]) -> Any:
    """The memory of several lanes as one offset."""
    seen = SeenPushes()
    for name in sorted(offsets):
        seen.learn(offsets[name]["seen"])
    partial = {push: taken for offset in offsets.values() for push, taken in _partial(offset).items()}
    return {"seen": seen.plain(), "partial": [(*push, taken) for push, taken in partial.items()]}


def _partial(offset: Any | None) -> dict[tuple[str, int], int]:
    """The pushes of which only the first records were read -> how many."""
    return {(client, seq): taken for client, seq, taken in offset["partial"]} if offset else {}


class SeenPushes:
    """Which (client, seq) were taken: per client the highest number and a bit for each of the `WINDOW` below it.

    This is the anti-replay window of RFC 4303, section 3.4.3: constant memory per client, and pushes on parallel
    connections may overtake each other.
    """

    def __init__(self, plain: dict[str, Sequence[int]] | None = None) -> None:
        self._clients: OrderedDict[str, tuple[int, int]] = OrderedDict(
            (client, (high, mask)) for client, (high, mask) in (plain or {}).items()
        )

    def __contains__(self, push: tuple[str, int]) -> bool:
        client, seq = push
        if client not in self._clients:
            return False
        high, mask = self._clients[client]
        if seq > high:
            return False
        return high - seq >= WINDOW or bool(mask >> (high - seq) & 1)

    def add(self, client: str, seq: int) -> None:
        """Remember a push; the client that was silent longest is forgotten when there are too many."""
        high, mask = self._clients.get(client, (seq, 0))
        if seq > high:
            shift = seq - high
            mask = (mask << shift) & (2**WINDOW - 1) if shift < WINDOW else 0
            high = seq
        if high - seq < WINDOW:
            mask |= 1 << (high - seq)
        self._clients[client] = (high, mask)
        self._clients.move_to_end(client)
        if len(self._clients) > CLIENTS:
            self._clients.popitem(last=False)

    def learn(self, plain: dict[str, Sequence[int]]) -> None:
        """Add what another lane remembers."""
        for client, (high, mask) in plain.items():
            for below in range(WINDOW):
                if mask >> below & 1:
                    self.add(client, high - below)

    def plain(self) -> dict[str, tuple[int, int]]:
        """A copy that a checkpoint can hold, least recently active first."""
        return dict(self._clients)


@dataclass(slots=True)
class _Waiting:
    records: list[Any]
    client: str | None
    seq: int | None
    bytes: int
    taken: int = 0


class PushReader(Reader):
    """The queue of one push source.

    The offset covers exactly what was read: `seen` (per client) and `partial`, the pushes of which only the first
    records were read. After a restart a client that got no answer repeats its push; what the checkpoint holds of it
    is not taken again, the rest is.
    """

    def __init__(self, max_bytes: int, offset: Any | None, ctx: ConnectorContext) -> None:
        self._max_bytes, self._ctx = max_bytes, ctx
        self._queue: deque[_Waiting] = deque()
        self._bytes = self._records = 0
        seen = offset["seen"] if offset else None
        self._accepted, self._read = SeenPushes(seen), SeenPushes(seen)
        self._partial = _partial(offset)

    def push(self, records: list[Any], client: str | None, seq: int | None) -> bool:
        """Take records; `False` when there is no room now. Repeats count as taken. Raises `UsageError` when these
        records alone are more than the queue's bound."""
        if client is not None and seq is not None and (client, seq) in self._accepted:
            return True
        size = _size(records)
        if size > self._max_bytes:
            raise UsageError(
                f"one push of {size} bytes is more than the source's bound of {self._max_bytes}",
                remedy="push fewer records at once, or raise push(max_bytes=…)",
            )
        if self._bytes + size > self._max_bytes:
            return False
        waiting = _Waiting(list(records), client, seq, size)
        if client is not None and seq is not None:
            waiting.taken = min(self._partial.get((client, seq), 0), len(records))
            self._accepted.add(client, seq)
        self._queue.append(waiting)
        self._bytes += size
        self._records += len(records) - waiting.taken
        self._ctx.wake()
        return True

    def read(self, limit: int) -> list[Any]:
        """The records that wait, in the order in which they were pushed."""
        batch: list[Any] = []
        while self._queue and len(batch) < limit:
            waiting = self._queue[0]
            records = waiting.records[waiting.taken : waiting.taken + limit - len(batch)]
            waiting.taken += len(records)
            batch += records
            if waiting.taken < len(waiting.records):
                break
            self._queue.popleft()
            self._bytes -= waiting.bytes
            if waiting.client is not None and waiting.seq is not None:
                self._read.add(waiting.client, waiting.seq)
                self._partial.pop((waiting.client, waiting.seq), None)
        self._records -= len(batch)
        return batch

    def offset(self) -> Any:
        """What was read, so that repeats after a restart are known."""
        partial = dict(self._partial)
        if self._queue and self._queue[0].taken:
            front = self._queue[0]
            if front.client is not None and front.seq is not None:
                partial[front.client, front.seq] = front.taken
        return {"seen": self._read.plain(), "partial": [(*push, taken) for push, taken in partial.items()]}

    def lag(self) -> int | None:
        """Records that wait."""
        return self._records


def _size(records: list[Any]) -> int:
    """About how much memory records take: their msgpack size, and some for each object."""
    try:
        return len(msgspec.msgpack.encode(records, enc_hook=repr)) + 16 * len(records)
    except (TypeError, ValueError, OverflowError):
        return len(repr(records)) + 16 * len(records)
