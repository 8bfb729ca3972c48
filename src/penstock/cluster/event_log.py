"""The cluster's log: streams in Redis that scripts and agents append to, and that every node reads.

`log` holds events: who changed what, what failed. `said` holds what models print and log, so that a talkative model
does not push the events out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from penstock.cluster.bus import Bus, BusDown
from penstock.cluster.service import LogEntry
from penstock.errors import ClusterError, UsageError

KEPT = 10_000
"""About so many entries are kept, of each stream."""
EVENTS, SAID = "log", "said"
"""The two streams."""
_WAITING = 500
"""Entries that wait while Redis is away; older ones are dropped and counted."""
_BATCH = 200


class EventLog:
    """Reads and appends. `say` never waits: entries go out with the next `flush`."""

    def __init__(self, bus: Bus, node: str) -> None:
        self._bus, self._node = bus, node
        self._waiting: deque[tuple[str, dict[str, str]]] = deque()
        self.dropped = 0

    def say(self, kind: str, text: str, *, model: str = "", level: str = "info", stream: str = EVENTS) -> None:
        """Append an entry soon."""
        if len(self._waiting) >= _WAITING:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append((stream, self._entry(kind, text, model, level)))

    async def flush(self) -> None:
        """Append what waits now; what is said meanwhile waits for the next time. Raises `BusDown`; nothing is lost
        then."""
        if dropped := self.dropped:
            text = f"{dropped} entries were dropped while Redis was away or slow"
            await self._append(EVENTS, self._entry("log.dropped", text, "", "warning"))
            self.dropped -= dropped
        for _ in range(len(self._waiting)):
            waiting = self._waiting[0]
            await self._append(*waiting)
            if self._waiting[0] is waiting:
                self._waiting.popleft()
            else:  # it was dropped just when it went out
                self.dropped -= 1

    async def _append(self, stream: str, entry: dict[str, str]) -> None:
        flat = [part for item in entry.items() for part in item]
        await self._bus.command("XADD", self._bus.key(stream), "MAXLEN", "~", KEPT, "*", *flat)

    def _entry(self, kind: str, text: str, model: str, level: str) -> dict[str, str]:
        return {"kind": kind, "text": text, "model": model, "level": level, "node": self._node}

    async def read(self, model: str | None, limit: int, after: str | None, stream: str = EVENTS) -> list[LogEntry]:
        """See `NodeService.log`."""
        if limit < 1:
            return []
        found: list[LogEntry] = []
        start, stop, command = ("(" + after, "+", "XRANGE") if after else ("+", "-", "XREVRANGE")
        while len(found) < limit:
            try:
                rows = await self._bus.command(command, self._bus.key(stream), start, stop, "COUNT", _BATCH)
            except BusDown:
                raise
            except ClusterError as error:
                raise UsageError(f"{after!r} is not the id of a log entry", remedy="use the id of an entry") from error
            entries = [_entry(name, fields) for name, fields in rows]
            found += [entry for entry in entries if model is None or entry.model == model]
            if len(rows) < _BATCH:
                break
            start = "(" + entries[-1].id
        found = found[:limit]
        return found if after else found[::-1]

    async def follow(self, model: str | None, after: str | None, stream: str = EVENTS) -> AsyncIterator[LogEntry]:
        """See `NodeService.follow`. While Redis is away nothing comes."""
        while after is None and not self._bus.closed:
            try:
                last = await self.read(None, 1, None, stream)
                after = last[-1].id if last else "0-0"
            except BusDown:
                await asyncio.sleep(self._bus.settings.poll)
        while not self._bus.closed:
            try:
                entries = await self.read(None, _BATCH, after, stream)
            except BusDown:
                entries = []
            for entry in entries:
                after = entry.id
                if model is None or entry.model == model:
                    yield entry
            if not entries:
                await asyncio.sleep(min(0.25, self._bus.settings.poll))


def _entry(name: str, fields: dict[str, str] | list[str]) -> LogEntry:
    known = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
    return LogEntry(
        id=name,
        time=int(name.partition("-")[0]) / 1000,
        kind=known.get("kind", ""),
        text=known.get("text", ""),
        level=known.get("level", "info"),
        node=known.get("node", ""),
        model=known.get("model", ""),
        user=known.get("user", ""),
    )
