"""`redis_stream`: entries of a Redis (or Valkey) stream, read or appended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from penstock.connectors import json_lines
from penstock.connectors.bad_records import BadRecord, shortened, without_bad
from penstock.connectors.both_ways import SourceAndSink
from penstock.connectors.inbox import Inbox
from penstock.connectors.retries import waits
from penstock.errors import ConnectorError, UsageError
from penstock.flow.connector import ConnectorContext, EndOfInput, Reader, Writer

T = TypeVar("T")
RECORD_FIELD = b"record"
PAGE_ENTRIES = 500
BLOCK_MILLISECONDS = 250

_decode_json = msgspec.json.Decoder().decode


@dataclass(frozen=True)
class RedisStream(SourceAndSink):
    """Made by `redis_stream`."""

    url: str = field(repr=False)
    stream: str
    maxlen: int | None
    deadline: float
    bounded: bool = False

    def partitions(self) -> Sequence[str]:
        """One: the stream."""
        return [self.stream]

    def reader(self, partition: str, offset: Any | None, ctx: ConnectorContext) -> Reader:
        """Entries after `offset`, an entry id."""
        return RedisStreamReader(self, offset, ctx)

    def writer(self, ctx: ConnectorContext) -> Writer:
        """Appends entries."""
        return RedisStreamWriter(self)

    def describe(self) -> str:
        """Stream and server, without the password."""
        return f"redis_stream {self.stream} at {self.where}"

    @property
    def where(self) -> str:
        """Host and port."""
        parts = urlsplit(self.url)
        return f"{parts.hostname or parts.path}:{parts.port or 6379}"


def redis_stream(
    url: str, stream: str, *, follow: bool = True, maxlen: int | None = None, deadline: float = 30.0
) -> RedisStream:
    """A stream of a Redis server at `redis://user:password@host:port/0`.

    As a source: all entries, then new ones as they come; `follow=False` ends at the last. It is replayable: the entry
    id is the offset. An entry with the one field `record` gives that field's JSON value, any other a dictionary of
    its fields' texts.

    As a sink: appends records as JSON in the field `record`, at least once; `maxlen` keeps about so many entries.

    `deadline` is how many seconds a lost connection is tried again. Raises `UsageError` for impossible options.
    """
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise UsageError(f"redis_stream: {url!r} is not a redis:// URL")
    if not stream or deadline <= 0 or (maxlen is not None and maxlen < 1):
        raise UsageError("redis_stream: a stream, maxlen of 1 or more and a deadline greater than 0 s are needed")
    return RedisStream(url, stream, maxlen, deadline, not follow)


class _Server:
    """A connection whose failed calls are repeated until the deadline."""

    def __init__(self, source: RedisStream) -> None:
        import redis

        self._source = source
        self.client: Any = redis.Redis.from_url(source.url, socket_connect_timeout=5, socket_timeout=10)
        self._transient = (redis.ConnectionError, redis.TimeoutError)
        self._wrong = redis.RedisError

    def call(self, work: Callable[[], T], sleep: Callable[[float], object] | None = None) -> T:
        """What `work` returns. Raises `ConnectorError`."""
        problem: Exception | None = None
        for _ in waits(self._source.deadline, sleep=sleep):
            try:
                return work()
            except self._transient as error:
                problem = error
            except self._wrong as error:
                raise ConnectorError(
                    f"the stream {self._source.stream!r} at {self._source.where}: {error}",
                    remedy="check that the key is a stream, and the user's rights",
                ) from error
        raise ConnectorError(
            f"Redis at {self._source.where} could not be used for {self._source.deadline:g} s: {problem}",
            remedy="check that the server runs and that host and port are right",
        )


class RedisStreamReader(Reader):
    """Entries in the order of their ids."""

    def __init__(self, source: RedisStream, offset: Any | None, ctx: ConnectorContext) -> None:
        self._source, self._ctx = source, ctx
        self._last: str = offset or "0-0"
        self._server = _Server(source)
        self._inbox = Inbox(4 * PAGE_ENTRIES, ctx.wake)
        self._inbox.start(self._feed, f"penstock-redis-{ctx.step}")

    def _feed(self, inbox: Inbox) -> None:
        """The thread."""
        last, client, stream = self._last.encode(), self._server.client, self._source.stream
        block = None if self._source.bounded else BLOCK_MILLISECONDS
        while True:
            after = {stream: last}
            answer = self._server.call(partial(client.xread, after, count=PAGE_ENTRIES, block=block), inbox.pause)
            pages = answer.values() if isinstance(answer, dict) else [entries for _, entries in answer or []]
            entries = [entry for page in pages for entry in _flat(page)]
            if entries:
                inbox.put(entries)
                last = entries[-1][0]
            elif self._source.bounded:
                return
            else:
                inbox.pause(0)

    def read(self, limit: int) -> list[Any]:
        """Entries that have arrived. Raises `ConnectorError` and `EndOfInput`."""
        ended = self._inbox.exhausted
        entries = self._inbox.take(limit)
        if entries:
            self._last = entries[-1][0].decode()
        elif ended:
            raise EndOfInput
        return without_bad([self._record(entry, fields) for entry, fields in entries], self._ctx)

    def _record(self, entry: bytes, fields: dict[bytes, bytes]) -> Any:
        try:
            if fields.keys() == {RECORD_FIELD}:
                return _decode_json(fields[RECORD_FIELD])
            return {name.decode(): value.decode() for name, value in fields.items()}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raw = fields.get(RECORD_FIELD, repr(fields))
            return BadRecord(
                raw,
                ConnectorError(
                    f"entry {entry.decode()} of the stream {self._source.stream!r}: {error}: {shortened(raw)}",
                    remedy='let the flow skip bad records (on_error="skip")',
                ),
            )

    def next_at(self) -> float | None:
        """Bad entries alone make a read empty although there are more."""
        return self._ctx.clock.monotonic() if len(self._inbox) else None

    def offset(self) -> Any:
        """The id of the last entry returned."""
        return self._last

    def close(self) -> None:
        """End the thread and close the connection."""
        self._inbox.close()
        self._server.client.close()


def _flat(page: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Entries of one stream; newer protocol versions nest them one deeper."""
    return page[0] if page and isinstance(page[0], list) else page


class RedisStreamWriter(Writer):
    """Appends entries, a batch in one round trip."""

    def __init__(self, sink: RedisStream) -> None:
        self._sink = sink
        self._server = _Server(sink)
        try:
            self._server.call(self._server.client.ping)
        except BaseException:
            self._server.client.close()
            raise

    def write(self, records: list[Any]) -> None:
        """Append records. Raises `ConnectorError` after the deadline."""
        bodies = list(map(json_lines.encode, records))
        self._server.call(lambda: self._append(bodies))

    def _append(self, bodies: list[bytes]) -> None:
        with self._server.client.pipeline(transaction=True) as pipeline:
            for body in bodies:
                pipeline.xadd(self._sink.stream, {RECORD_FIELD: body}, maxlen=self._sink.maxlen, approximate=True)
            pipeline.execute()

    def close(self) -> None:
        """Close the connection."""
        self._server.client.close()

    def abort(self) -> None:
        """Close the connection."""
        self._server.client.close()
