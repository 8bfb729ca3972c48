"""`nats`: messages of a NATS JetStream subject, read or published."""

from __future__ import annotations

import asyncio
import socket
import threading
import uuid
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from penstock.connectors import json_lines
from penstock.connectors.bad_records import BadRecord, shortened, without_bad
from penstock.connectors.both_ways import SourceAndSink
from penstock.connectors.inbox import Inbox, InboxClosed
from penstock.errors import ConnectorError, UsageError
from penstock.flow.connector import ConnectorContext, Reader, Writer

T = TypeVar("T")
PAGE_MESSAGES = 500
FETCH_SECONDS = 0.5

_decode_json = msgspec.json.Decoder().decode


@dataclass(frozen=True)
class NatsSubject(SourceAndSink):
    """Made by `nats`."""

    url: str = field(repr=False)
    subject: str
    durable: str | None
    in_flight: int
    deadline: float
    bounded: bool = False
    replayable: bool = False

    def partitions(self) -> Sequence[str]:
        """One: the subject."""
        return [self.subject]

    def reader(self, partition: str, offset: Any | None, ctx: ConnectorContext) -> Reader:
        """A durable pull consumer."""
        return NatsReader(self, offset, ctx)

    def writer(self, ctx: ConnectorContext) -> Writer:
        """A publisher."""
        return NatsWriter(self, ctx)

    def describe(self) -> str:
        """Subject and server, without the password."""
        return f"nats {self.subject} at {self.where}"

    @property
    def where(self) -> str:
        """Host and port."""
        return self.url.rpartition("@")[2].removeprefix("nats://").removeprefix("tls://")


def nats(
    url: str, subject: str, *, durable: str | None = None, in_flight: int = 10_000, deadline: float = 30.0
) -> NatsSubject:
    """Messages of `subject` in NATS JetStream at `nats://user:password@host:port`; a stream with the subject has to
    exist on the server.

    As a source: JSON messages of a durable pull consumer (`durable`, by default named after flow and step). Each is
    acknowledged when its effect is safe (at least once); at most `in_flight` are unacknowledged.

    As a sink: publishes records as JSON, and waits for the server's confirmation. At least once.

    `deadline` is how many seconds a connection is tried. Raises `UsageError` for impossible options.
    """
    if not url.startswith(("nats://", "tls://")):
        raise UsageError(f"nats: {url!r} is not a nats:// URL")
    if not subject or in_flight < 1 or deadline <= 0:
        raise UsageError("nats: a subject, in_flight of 1 or more and a deadline greater than 0 s are needed")
    return NatsSubject(url, subject, durable, in_flight, deadline)


async def _connected(source: NatsSubject) -> Any:
    """A connection. Raises `ConnectorError`."""
    try:
        import nats as client
    except ModuleNotFoundError as error:
        raise ConnectorError("nats needs nats-py", remedy="pip install 'penstock[nats]'") from error

    async def quiet(error: Exception) -> None:
        """Errors of the connection come out of the calls that they break."""

    try:
        return await asyncio.wait_for(
            client.connect(
                source.url, allow_reconnect=True, max_reconnect_attempts=-1, connect_timeout=2, error_cb=quiet
            ),
            source.deadline,
        )
    except (OSError, TimeoutError, client.errors.Error) as error:
        raise ConnectorError(
            f"NATS at {source.where} could not be reached for {source.deadline:g} s: {_why(source, error)}",
            remedy="check that the server runs and that host and port are right",
        ) from error


def _why(source: NatsSubject, error: Exception) -> str:
    """The client's own words; when it has none (it tried until the deadline), why a plain connection fails."""
    if str(error):
        return str(error)
    parts = urlsplit(source.url.split(",")[0])
    try:
        with socket.create_connection((parts.hostname or "localhost", parts.port or 4222), timeout=1.0):
            return "something listens there, but it does not answer as a NATS server"
    except (OSError, ValueError) as problem:
        return getattr(problem, "strerror", None) or str(problem)


def _refused(source: NatsSubject, error: Exception) -> ConnectorError:
    return ConnectorError(
        f"NATS at {source.where}, subject {source.subject!r}: {error or type(error).__name__}",
        remedy="check that JetStream is on and that a stream has this subject",
    )


class NatsReader(Reader):
    """The offset counts messages, for `retained` alone; what was not acknowledged comes again from the server."""

    def __init__(self, source: NatsSubject, offset: Any | None, ctx: ConnectorContext) -> None:
        self._source, self._ctx = source, ctx
        self._durable = source.durable or f"penstock-{ctx.flow}-{ctx.step}".replace(".", "-").replace(" ", "-")
        self._read = int(offset or 0)
        self._unsafe: deque[tuple[int, Any]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox = Inbox(source.in_flight, ctx.wake)
        self._inbox.start(self._feed, f"penstock-nats-{ctx.step}")

    def _feed(self, inbox: Inbox) -> None:
        """The thread: an event loop of its own."""
        asyncio.run(self._consume(inbox))

    async def _consume(self, inbox: Inbox) -> None:
        connection = await _connected(self._source)
        import nats as client
        from nats.js.api import AckPolicy, ConsumerConfig

        try:
            config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, max_ack_pending=self._source.in_flight)
            subscription = await connection.jetstream().pull_subscribe(
                self._source.subject, durable=self._durable, config=config
            )
            self._loop = asyncio.get_running_loop()
            while not inbox.closed:
                try:
                    messages = await subscription.fetch(PAGE_MESSAGES, timeout=FETCH_SECONDS)
                except (TimeoutError, client.errors.TimeoutError):
                    continue
                await asyncio.to_thread(inbox.put, messages)
        except InboxClosed:
            pass
        except (client.errors.Error, client.js.errors.Error) as error:
            raise _refused(self._source, error) from error
        finally:
            self._loop = None
            await connection.flush(2)  # the acknowledgements that were given last
            await connection.close()

    def read(self, limit: int) -> list[Any]:
        """Messages that have arrived. Raises `ConnectorError`."""
        messages = self._inbox.take(limit)
        records = []
        for message in messages:
            self._read += 1
            self._unsafe.append((self._read, message))
            records.append(self._record(message))
        return without_bad(records, self._ctx)

    def _record(self, message: Any) -> Any:
        try:
            return _decode_json(message.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return BadRecord(
                message.data,
                ConnectorError(
                    f"a message on {message.subject!r} is not JSON: {error}: {shortened(message.data)}",
                    remedy='let the flow skip bad records (on_error="skip")',
                ),
            )

    def next_at(self) -> float | None:
        """Bad messages alone make a read empty although there are more."""
        return self._ctx.clock.monotonic() if len(self._inbox) else None

    def offset(self) -> Any:
        """Messages read so far."""
        return self._read

    def retained(self, offset: Any) -> None:
        """Acknowledge the messages up to `offset`."""
        safe = []
        while self._unsafe and self._unsafe[0][0] <= (offset or 0):
            safe.append(self._unsafe.popleft()[1])
        loop = self._loop
        if safe and loop is not None:
            asyncio.run_coroutine_threadsafe(_acknowledge(safe), loop)

    def lag(self) -> int | None:
        """Messages received and not read."""
        return len(self._inbox)

    def close(self) -> None:
        """Disconnect; the server keeps what was not acknowledged."""
        self._inbox.close()


async def _acknowledge(messages: list[Any]) -> None:
    for message in messages:
        await message.ack()


class NatsWriter(Writer):
    """Publishes from an event loop in a thread; `write` waits for the server's confirmations."""

    def __init__(self, sink: NatsSubject, ctx: ConnectorContext) -> None:
        self._sink = sink
        self._run = f"{ctx.flow}-{ctx.step}-{ctx.index}-{uuid.uuid4().hex}"
        self._count = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"penstock-nats-{ctx.step}", daemon=True)
        self._thread.start()
        self._connection: Any = None
        try:
            self._connection = self._do(_connected(sink))
        except BaseException:
            self.abort()
            raise

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(2 * self._sink.deadline + 5)

    def write(self, records: list[Any]) -> None:
        """Publish and wait. Raises `ConnectorError`."""
        self._do(self._publish(list(map(json_lines.encode, records))))

    async def _publish(self, bodies: list[bytes]) -> None:
        """A page at a time; the message id lets the server drop a repeat of the same attempt."""
        import nats as client

        stream = self._connection.jetstream(timeout=self._sink.deadline)
        for start in range(0, len(bodies), PAGE_MESSAGES):
            page = bodies[start : start + PAGE_MESSAGES]
            first, self._count = self._count, self._count + len(page)
            try:
                await asyncio.gather(
                    *(
                        stream.publish(self._sink.subject, body, headers={"Nats-Msg-Id": f"{self._run}-{first + i}"})
                        for i, body in enumerate(page)
                    )
                )
            except (client.errors.Error, client.js.errors.Error, TimeoutError) as error:
                raise _refused(self._sink, error) from error

    def close(self) -> None:
        """Disconnect."""
        self.abort()

    def abort(self) -> None:
        """Disconnect and end the thread."""
        if self._loop.is_closed():
            return
        try:
            if self._connection is not None:
                self._do(self._connection.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()
