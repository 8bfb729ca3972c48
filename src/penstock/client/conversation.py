"""How a request is tried until it succeeds, without I/O.

A **call** describes one request and how to read its answer. A **conversation** is a generator that yields calls, pauses
and work and is sent the answers; retries and deadlines live here. One that has several requests under way **begins**
them and **takes** what happens next. Drivers (`penstock.client.drivers`) do the I/O.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import httpx
import msgspec

from penstock.client.errors import BY_STATUS, ClientError, Rejected, RolledBack, Unreachable

DEFAULT_URL = "http://127.0.0.1:8700"

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and how to read a good answer to it."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | tuple[bytes | Path, ...] | None = None
    """A tuple is sent piece by piece, files without holding them in memory."""
    repeatable: bool = False
    """Whether sending it twice does no harm, so that it is tried again after a broken connection or a 503."""
    timeout: float | None = None
    """Seconds until the answer begins, where the client's own default is too short."""
    accept: tuple[int, ...] = ()
    """Statuses beside 2xx that are answers rather than errors."""
    url: str = ""
    """The node to ask; empty: the one that the client was made for."""
    connect: float | None = None
    """Seconds until there is a connection, where the client's own default is too long."""


@dataclass(frozen=True)
class Pause:
    """Ask the driver to wait."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Ask the driver for the result of a function that takes its time; what it raises is raised in the conversation."""

    run: Callable[[], Any]


@dataclass(frozen=True)
class Begin:
    """Ask the driver to send a call and to go on at once; the answer comes by `Take`."""

    tag: Any
    call: Call[Any]


@dataclass(frozen=True)
class Take:
    """Ask the driver for what happens next: an `Answered`, `Input` or `Ended`, or `None` after some time."""

    seconds: float | None
    """At most so long; `None`: as long as it takes."""
    input: bool
    """Whether input is wanted."""


@dataclass(frozen=True)
class Answered:
    """A call that was begun has been answered, or has failed."""

    tag: Any
    answer: httpx.Response | httpx.TransportError


@dataclass(frozen=True)
class Body:
    """What one push carries: whole lines of NDJSON."""

    content: bytes
    records: int


@dataclass(frozen=True)
class Input:
    """The next piece of the input."""

    body: Body


@dataclass(frozen=True)
class Ended:
    """There is no further input. `broken`: it failed, or nobody waits for the end any more."""

    broken: bool = False


Step: TypeAlias = "Call[Any] | Pause | Work | Begin | Take"
Conversation: TypeAlias = Generator[Step, Any, T]
"""Is sent a response or a transport error for a call, the result for work, what happened for `Take`, else `None`."""


@dataclass
class Session:
    """What the calls of one client share."""

    url: str
    token: str | None = None
    deadline: float = 30.0
    """Seconds that a call may take in all, retries included."""
    user: str = ""
    """Who asks, for the audit trail of changes."""
    client_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    clock: Callable[[], float] = time.monotonic
    timeout: float = 15.0
    """Seconds for one request."""
    answered: bool = False
    """Whether anybody has answered yet."""
    streams: dict[str, Any] = field(default_factory=dict)
    """Path of a stream -> what is remembered of it from one push to the next."""


def converse(
    session: Session,
    call: Call[T],
    deadline: float | None = None,
    on_retry: Callable[[ClientError], None] = lambda error: None,
) -> Conversation[T]:
    """Send `call` until it succeeds, fails for good, or the deadline (seconds from now) comes.

    429 is always tried again; 503 with `Retry-After` and a broken connection only when the call is repeatable; a
    refused connection only after the node has answered before: it may be restarting, a first call may be misdirected.
    `on_retry` is told the error that will be tried to overcome.
    """
    end = session.clock() + (session.deadline if deadline is None else deadline)
    attempt = 0
    while True:
        answer: httpx.Response | httpx.TransportError = yield call
        if isinstance(answer, httpx.Response):
            session.answered = True
            if answer.is_success or answer.status_code in call.accept:
                return _read(call, answer)
            error, wait = failure(call, answer), _retry_after(call, answer)
        else:
            error = unreachable(session, answer)
            wait = backoff(attempt) if call.repeatable and _may_pass(session, answer) else None
        attempt += 1
        if wait is None or session.clock() + wait > end:
            raise error
        on_retry(error)
        yield Pause(wait)


def _may_pass(session: Session, error: httpx.TransportError) -> bool:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return session.answered
    return not isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError)


def backoff(attempt: int) -> float:
    """Seconds before the next try: doubling from 0.1 to 3, with jitter so that clients do not march in step."""
    return min(3.0, 0.1 * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0)


def _read(call: Call[T], answer: httpx.Response) -> T:
    try:
        return call.read(answer)
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise ClientError(
            f"{call.method} {call.path}: the answer is not what a Penstock node sends ({error})",
            status=answer.status_code,
            remedy="check that the address is a Penstock node of a matching version",
        ) from error


def _retry_after(call: Call[Any], answer: httpx.Response) -> float | None:
    """Seconds that the server asks us to wait, or `None` when trying again makes no sense."""
    if answer.status_code != 429 and not (answer.status_code == 503 and call.repeatable):
        return None
    return retry_after(answer)


def retry_after(answer: httpx.Response) -> float | None:
    """Seconds that the server asks us to wait, if it does."""
    header = answer.headers.get("retry-after")
    if header is None:
        return None
    problem = _problem(answer)
    if problem.get("operation"):  # rolled back: the same request again gets the same answer
        return None
    exact = problem.get("retry_after")  # the header knows whole seconds alone
    if isinstance(exact, int | float):
        return max(0.01, float(exact))
    # The header may also be a date, which resolves a second.
    return float(header) if header.isdecimal() else 1.0


def _problem(answer: httpx.Response) -> dict[str, Any]:
    try:
        decoded = msgspec.json.decode(answer.content)
    except msgspec.DecodeError:
        return {}
    return decoded if isinstance(decoded, dict) else {}


def failure(call: Call[Any], answer: httpx.Response) -> ClientError:
    """The error for a bad answer, with the words of its problem+json body."""
    problem = _problem(answer)
    detail = problem.get("detail") or problem.get("title") or f"{answer.status_code} {answer.reason_phrase}"
    message = str(detail)
    nodes = problem.get("nodes")
    if isinstance(nodes, dict):
        message += "".join(f"\n  {node}: {reason}" for node, reason in nodes.items())
    status = answer.status_code
    kind = BY_STATUS.get(status) or (Rejected if 400 <= status < 500 else ClientError)
    if status == 503 and problem.get("operation"):
        kind = RolledBack
    if not problem:
        message = f"{call.method} {call.path}: {message}"
    return kind(message, status=status, problem=problem)


def unreachable(session: Session, error: httpx.TransportError, url: str = "") -> Unreachable:
    """The error for no answer, of the node at `url` or of the one that the client was made for."""
    url = url or session.url
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return Unreachable(f"{url!r} is not an address: {error}", remedy=f"an address looks like {DEFAULT_URL}")
    if isinstance(error, httpx.ReadTimeout):
        return Unreachable(
            f"the node at {url} did not answer in time",
            remedy="it may be overloaded: `penstock top` shows where; a longer timeout= (or --deadline) waits longer",
        )
    cause = "no answer in time" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
    return Unreachable(
        f"no Penstock node answers at {url}: {cause}",
        remedy="start one with `penstock up`, or name another with --url or PENSTOCK_URL",
    )
