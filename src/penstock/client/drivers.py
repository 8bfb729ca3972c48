"""The two clients: each drives the same conversations, one with blocking I/O, one with asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import httpx

from penstock.client import calls
from penstock.client.conversation import (
    DEFAULT_URL,
    Answer,
    Call,
    Conversation,
    Pause,
    Session,
    failure,
    unreachable,
)
from penstock.client.follow import EventParser
from penstock.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")

_FOLLOW: Call[None] = Call("GET", "/v1/events", calls.nothing)


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
    add_model = _Operation(calls.add_model)
    delete_model = _Operation(calls.delete_model)
    online = _Operation(calls.online)
    offline = _Operation(calls.offline)
    results = _Operation(calls.results)
    placement = _Operation(calls.placement)
    metrics = _Operation(calls.metrics)
    log = _Operation(calls.log)
    state = _Operation(calls.state)
    list_state = _Operation(calls.list_state)
    push = _Operation(calls.push)
    push_ndjson = _Operation(calls.push_ndjson)


def _connection(session: Session, timeout: float) -> dict[str, Any]:
    headers = {} if session.token is None else {"authorization": f"Bearer {session.token}"}
    # An environment's proxy must not come between a client and a node on the loopback.
    local = httpx.URL(session.url).host in ("127.0.0.1", "localhost", "::1")
    return {"base_url": session.url, "headers": headers, "timeout": timeout, "trust_env": not local}


def _session(url: str, token: str | None, deadline: float) -> Session:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"{url!r} is not an address: {error}", remedy=f"an address looks like {DEFAULT_URL}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{url!r} is not an address", remedy=f"an address looks like {DEFAULT_URL}")
    return Session(url.rstrip("/"), token, deadline)


def _request(call: Call[Any]) -> dict[str, Any]:
    return {
        "method": call.method,
        "url": call.path,
        "params": dict(call.query) or None,
        "headers": dict(call.headers),
        "content": call.body,
        "timeout": httpx.USE_CLIENT_DEFAULT if call.timeout is None else call.timeout,
    }


class Client(_Operations):
    """A blocking client. `timeout`: seconds for one request (a node gives up by itself after 10); `deadline`: for a
    call with its retries.

    Raises `UsageError` for what cannot be sent and `ClientError` (see its subclasses) for what did not succeed.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        token: str | None = None,
        *,
        timeout: float = 15.0,
        deadline: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.session = _session(url, token, deadline)
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
        parser = EventParser(after)
        try:
            with self._http.stream(**parser.request(name)) as answer:
                if not answer.is_success:
                    answer.read()
                    raise failure(_FOLLOW, answer)
                for line in answer.iter_lines():
                    event = parser.feed(line)
                    if event is not None:
                        yield event
        except httpx.TransportError as error:
            raise unreachable(self.session, error) from None

    def drive(self, conversation: Conversation[T]) -> T:
        """Run a conversation with blocking I/O."""
        answer: Answer = None
        while True:
            try:
                step = conversation.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = None
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                continue
            try:
                answer = self._http.request(**_request(step))
            except httpx.TransportError as error:
                answer = error


class AsyncClient(_Operations):
    """The same for asyncio: every method of `Client`, awaited."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        token: str | None = None,
        *,
        timeout: float = 15.0,
        deadline: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.session = _session(url, token, deadline)
        self._http = httpx.AsyncClient(transport=transport, **_connection(self.session, timeout))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def follow(self, name: str | None = None, *, after: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """The same as `Client.follow`."""
        parser = EventParser(after)
        try:
            async with self._http.stream(**parser.request(name)) as answer:
                if not answer.is_success:
                    await answer.aread()
                    raise failure(_FOLLOW, answer)
                async for line in answer.aiter_lines():
                    event = parser.feed(line)
                    if event is not None:
                        yield event
        except httpx.TransportError as error:
            raise unreachable(self.session, error) from None

    async def drive(self, conversation: Conversation[T]) -> T:
        """Run a conversation with asyncio."""
        answer: Answer = None
        while True:
            try:
                step = conversation.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = None
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                continue
            try:
                answer = await self._http.request(**_request(step))
            except httpx.TransportError as error:
                answer = error
