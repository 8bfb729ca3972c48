"""The two clients: each drives the same conversations, one with blocking I/O, one with asyncio."""

from __future__ import annotations

import asyncio
import getpass
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, Unpack, overload

import httpx

from penstock.client import calls, changes, pushing
from penstock.client.conversation import (
    DEFAULT_URL,
    Call,
    Conversation,
    Pause,
    Session,
    Step,
    Work,
    failure,
    unreachable,
)
from penstock.client.feed import LINGER, Feed
from penstock.client.follow import EventParser
from penstock.client.pushing import PushOptions
from penstock.client.sending import PushResult
from penstock.client.streaming import AwaitedPush, BlockingPush
from penstock.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")

STALL = 15.0
"""Seconds in which a connection must be made, or a piece of a body be taken."""
PIECE = 256 * 2**10
"""Bytes of a file that are read at once while it is sent."""


class _Operation(Generic[P, T]):
    """A conversation as a method: blocking on `Client`, awaitable on `AsyncClient`."""

    def __init__(self, start: Callable[Concatenate[Session, P], Conversation[T]]) -> None:
        self.start = start
        self.__doc__ = start.__doc__

    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Awaitable[T]]: ...
    @overload
    def __get__(self, client: None, owner: type) -> _Operation[P, T]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Any:
        if client is None:
            return self

        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.drive(self.start(client.session, *args, **kwargs))

        method.__doc__ = self.__doc__
        method.__name__ = self.start.__name__
        return method


class _Operations:
    """Everything that both clients can do."""

    health = _Operation(calls.health)
    ready = _Operation(calls.ready)
    nodes = _Operation(calls.nodes)
    models = _Operation(calls.models)
    model = _Operation(calls.model)
    add_model = _Operation(changes.add_model)
    update_model = _Operation(changes.update_model)
    rollback = _Operation(changes.rollback)
    delete_model = _Operation(changes.delete_model)
    online = _Operation(changes.online)
    move = _Operation(changes.move)
    split = _Operation(changes.split)
    offline = _Operation(changes.offline)
    versions = _Operation(changes.versions)
    operations = _Operation(changes.operations)
    operation = _Operation(changes.operation)
    cancel_operation = _Operation(changes.cancel_operation)
    logs = _Operation(changes.logs)
    results = _Operation(calls.results)
    placement = _Operation(calls.placement)
    rebalance = _Operation(calls.rebalance)
    metrics = _Operation(calls.metrics)
    log = _Operation(calls.log)
    state = _Operation(calls.state)
    list_state = _Operation(calls.list_state)


def _connection(session: Session, timeout: float) -> dict[str, Any]:
    headers = {} if session.token is None else {"authorization": f"Bearer {session.token}"}
    # An environment's proxy must not come between a client and a node on the loopback.
    local = httpx.URL(session.url).host in ("127.0.0.1", "localhost", "::1")
    return {"base_url": session.url, "headers": headers, "timeout": timeout, "trust_env": not local}


def _session(url: str, token: str | None, timeout: float, deadline: float, user: str | None) -> Session:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"{url!r} is not an address: {error}", remedy=f"an address looks like {DEFAULT_URL}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{url!r} is not an address", remedy=f"an address looks like {DEFAULT_URL}")
    user = login_name() if user is None else user
    return Session(url.rstrip("/"), token, deadline, user, timeout=timeout)


def login_name() -> str:
    """Who runs this process; empty when the system does not know, as in some containers."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
    return "".join(letter for letter in name if letter.isprintable())[:100]


def _request(session: Session, call: Call[Any]) -> dict[str, Any]:
    headers = {name: value.encode() for name, value in call.headers.items()}
    if isinstance(call.body, tuple):
        size = sum(len(piece) if isinstance(piece, bytes) else piece.stat().st_size for piece in call.body)
        headers["content-length"] = str(size).encode()
    timeout: Any = httpx.USE_CLIENT_DEFAULT
    if call.timeout is not None or call.connect is not None:
        read = session.timeout if call.timeout is None else call.timeout
        timeout = httpx.Timeout(STALL, read=read, connect=STALL if call.connect is None else call.connect)
    return {
        "method": call.method,
        "url": call.url + call.path,
        "params": dict(call.query) or None,
        "headers": headers,
        "timeout": timeout,
    }


def _feed(session: Session, options: PushOptions) -> Feed:
    """Numbers that the caller gives must mean the same records each time, however slowly they come."""
    return Feed(session.clock, None if options.get("client") is not None else LINGER)


def _pieces(body: tuple[bytes | Path, ...]) -> Iterator[bytes]:
    """A body in bounded pieces."""
    for part in body:
        if isinstance(part, bytes):
            yield part
            continue
        with part.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece


async def _pieces_in_loop(body: tuple[bytes | Path, ...]) -> AsyncIterator[bytes]:
    """The same; a slow disk does not hold the loop."""
    pieces = _pieces(body)
    try:
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield piece
    finally:
        pieces.close()  # type: ignore[attr-defined] # it is a generator


def _events(name: str | None) -> tuple[str, dict[str, str]]:
    return "/v1/events", {} if name is None else {"model": name}


def _lines(name: str) -> tuple[str, dict[str, str]]:
    return changes.logs_path(name), {"follow": "true"}


class Client(_Operations):
    """A blocking client. `timeout`: seconds for one request (a node gives up by itself after 10); `deadline`: for a
    call with its retries; changes of models have a deadline of their own. `user`: who asks, for the audit trail;
    default: the login name.

    Raises `UsageError` for what cannot be sent and `ClientError` (see its subclasses) for what did not succeed.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        token: str | None = None,
        *,
        timeout: float = 15.0,
        deadline: float = 30.0,
        user: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.session = _session(url, token, timeout, deadline, user)
        self._http = httpx.Client(transport=transport, **_connection(self.session, timeout))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def follow(self, name: str | None = None, *, after: str | None = None) -> Iterator[dict[str, Any]]:
        """The cluster's log (of one model) as it grows, from now or after the id `after`, until the node stops or the
        connection breaks (then `Unreachable`; go on after the last `id` that you saw)."""
        return self._stream(*_events(name), after)

    def follow_logs(self, name: str, *, after: str | None = None) -> Iterator[dict[str, Any]]:
        """What a model prints and logs as it comes; as `follow`. Raises `NotFound`."""
        return self._stream(*_lines(name), after)

    def _stream(self, path: str, query: Mapping[str, str], after: str | None) -> Iterator[dict[str, Any]]:
        parser = EventParser(after)
        try:
            with self._http.stream(**parser.request(path, query)) as answer:
                if not answer.is_success:
                    answer.read()
                    raise failure(Call("GET", path, calls.nothing), answer)
                for line in answer.iter_lines():
                    event = parser.feed(line)
                    if event is not None:
                        yield event
        except httpx.TransportError as error:
            raise unreachable(self.session, error) from None

    def push(self, stream: str, records: Iterable[Any], **options: Unpack[PushOptions]) -> PushResult:
        """Push records to `stream` (`model/source` or `group/model/source`), as many as there are.

        They are cut into pieces that are spread over the executors of the source, each sent to the node where its
        executor is, several at once. Every piece is kept until it is acknowledged and sent again when there is no
        answer, when there is no room (as the cluster asks), and when the executor has moved or is started elsewhere;
        the cluster takes it once. A `push` that is one piece goes to the same executor as the one before.

        Options: see `PushOptions`. Raises `ClientError` (see its subclasses), whose `pushed` says what is acknowledged
        all the same, and `UsageError` for a record that JSON cannot hold.
        """
        return self._push(stream, records, options, bodies=False)

    def push_ndjson(self, stream: str, bodies: Iterable[bytes], **options: Unpack[PushOptions]) -> PushResult:
        """Like `push`, for records that are NDJSON already: each of `bodies` (whole lines) becomes one piece."""
        return self._push(stream, bodies, options, bodies=True)

    def _push(self, stream: str, items: Iterable[Any], options: PushOptions, *, bodies: bool) -> PushResult:
        conversation = pushing.push(self.session, stream, **options)
        push = BlockingPush(_feed(self.session, options), self._take)
        return push.run(lambda step: self.drive(conversation, step), items, bodies)

    def drive(self, conversation: Conversation[T], take: Callable[[Step], Any] | None = None) -> T:
        """Run a conversation with blocking I/O. `take` does its steps instead of this client."""
        take = take or self._take
        try:
            step = next(conversation)
            while True:
                try:
                    answer = take(step)
                except Exception as error:
                    step = conversation.throw(error)
                else:
                    step = conversation.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            conversation.close()

    def _take(self, step: Step) -> Any:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        if isinstance(step, Work):
            return step.run()
        assert isinstance(step, Call)
        content = _pieces(step.body) if isinstance(step.body, tuple) else step.body
        try:
            return self._http.request(**_request(self.session, step), content=content)
        except httpx.TransportError as error:
            return error


class AsyncClient(_Operations):
    """The same for asyncio: every method of `Client`, awaited."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        token: str | None = None,
        *,
        timeout: float = 15.0,
        deadline: float = 30.0,
        user: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.session = _session(url, token, timeout, deadline, user)
        self._http = httpx.AsyncClient(transport=transport, **_connection(self.session, timeout))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def follow(self, name: str | None = None, *, after: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """The same as `Client.follow`."""
        return self._stream(*_events(name), after)

    def follow_logs(self, name: str, *, after: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """The same as `Client.follow_logs`."""
        return self._stream(*_lines(name), after)

    async def _stream(self, path: str, query: Mapping[str, str], after: str | None) -> AsyncIterator[dict[str, Any]]:
        parser = EventParser(after)
        try:
            async with self._http.stream(**parser.request(path, query)) as answer:
                if not answer.is_success:
                    await answer.aread()
                    raise failure(Call("GET", path, calls.nothing), answer)
                async for line in answer.aiter_lines():
                    event = parser.feed(line)
                    if event is not None:
                        yield event
        except httpx.TransportError as error:
            raise unreachable(self.session, error) from None

    async def push(
        self, stream: str, records: Iterable[Any] | AsyncIterable[Any], **options: Unpack[PushOptions]
    ) -> PushResult:
        """The same as `Client.push`; the records may come from an asynchronous iterable."""
        return await self._push(stream, records, options, bodies=False)

    async def push_ndjson(
        self, stream: str, bodies: Iterable[bytes] | AsyncIterable[bytes], **options: Unpack[PushOptions]
    ) -> PushResult:
        """The same as `Client.push_ndjson`; the bodies may come from an asynchronous iterable."""
        return await self._push(stream, bodies, options, bodies=True)

    async def _push(
        self, stream: str, items: Iterable[Any] | AsyncIterable[Any], options: PushOptions, *, bodies: bool
    ) -> PushResult:
        conversation = pushing.push(self.session, stream, **options)
        push = AwaitedPush(_feed(self.session, options), self._take)
        return await push.run(lambda step: self.drive(conversation, step), items, bodies)

    async def drive(self, conversation: Conversation[T], take: Callable[[Step], Awaitable[Any]] | None = None) -> T:
        """Run a conversation with asyncio. `take` does its steps instead of this client."""
        take = take or self._take
        try:
            step = next(conversation)
            while True:
                try:
                    answer = await take(step)
                except Exception as error:
                    step = conversation.throw(error)
                else:
                    step = conversation.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            conversation.close()

    async def _take(self, step: Step) -> Any:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        if isinstance(step, Work):
            return await _in_thread(step)
        assert isinstance(step, Call)
        content = _pieces_in_loop(step.body) if isinstance(step.body, tuple) else step.body
        try:
            return await self._http.request(**_request(self.session, step), content=content)
        except httpx.TransportError as error:
            return error


async def _in_thread(step: Work) -> Any:
    """The result of work. A thread cannot be interrupted: whoever cancels waits for it, so that nothing is left."""
    working = asyncio.create_task(asyncio.to_thread(step.run))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        if not working.cancelled():
            working.exception()  # seen, and of no interest any more
        raise
