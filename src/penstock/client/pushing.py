"""A push as a conversation: asks for addresses, sends pieces by `Sender`'s rules, reads the answers. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

import httpx
import msgspec

from penstock.client.calls import mapping, stream_path
from penstock.client.conversation import (
    Answered,
    Begin,
    Call,
    Conversation,
    Ended,
    Input,
    Session,
    Take,
    converse,
    failure,
    retry_after,
    unreachable,
)
from penstock.client.errors import ClientError
from penstock.client.routes import Addresses, Routes
from penstock.client.sending import WINDOW, Identity, Limits, PushResult, Send, Sender
from penstock.errors import UsageError

CONNECT = 3.0
"""Seconds until a node that was told of has to accept a connection; it may be one that cannot be reached from here."""
ASKING = 3.0
"""Seconds that a node has to tell addresses."""
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same push can be sent again: with its number it is taken once."""


class PushOptions(TypedDict, total=False):
    """Keywords of every push.

    `ordered`: one piece at a time, to one lane, so that one executor takes all records, in this order.
    `client` and `seq`: who sends, and the number of the first piece, to make a push repeatable over restarts of the
    caller: equal records make equal pieces.
    `deadline`: seconds in which a lane may acknowledge nothing, with all retries.
    `window`: bytes that may be without acknowledgement.
    `on_progress` is told after every acknowledgement what has come of the push so far; `Client` calls it from a thread
    of its own.
    """

    ordered: bool
    client: str | None
    seq: int | None
    deadline: float | None
    window: int
    on_progress: Callable[[PushResult], None]


class _Stream:
    """What a session remembers of one stream."""

    def __init__(self, session: Session) -> None:
        self.routes = Routes(session.url)
        self.idle: list[Identity] = []
        self._made = 0
        self._name = session.client_id

    def lease(self) -> Identity:
        """An identity that no other push uses now."""
        try:
            return self.idle.pop()
        except IndexError:
            self._made += 1
            return Identity(self._name if self._made == 1 else f"{self._name}.{self._made}")


def push(
    session: Session,
    stream: str,
    *,
    ordered: bool = False,
    client: str | None = None,
    seq: int | None = None,
    deadline: float | None = None,
    window: int = WINDOW,
    on_progress: Callable[[PushResult], None] = lambda result: None,
) -> Conversation[PushResult]:
    """Push what the driver's input gives to `stream`. See `Client.push`."""
    if (client is None) != (seq is None):
        raise UsageError("client= and seq= belong together", remedy="give both or none")
    path = f"/v1/streams/{stream_path(stream)}"
    known: _Stream = session.streams.setdefault(path, _Stream(session))
    seconds = session.deadline if deadline is None else deadline
    if known.routes.addresses is None:
        addresses = yield from converse(session, _question(path, "", None), seconds)
        known.routes.learn(addresses, session.clock())
    leased = known.lease() if client is None else None
    identity = leased or Identity(client or "", {None: seq or 0}, named=True)
    try:
        sender = Sender(identity, known.routes, Limits(window=window, deadline=seconds), ordered=ordered)
        yield from _sent(session, path, sender, on_progress)
        return _finished(sender)
    finally:
        if leased is not None:
            known.idle.append(leased)


def _sent(session: Session, path: str, sender: Sender, on_progress: Callable[[PushResult], None]) -> Conversation[None]:
    """Send until everything is acknowledged or nothing more can be."""
    while True:
        now = session.clock()
        for send in sender.send(now):
            yield Begin(send, _piece(path, send, sender.cluster))
        url = sender.question(now)
        if url is not None:
            yield Begin(url, _question(path, url, ASKING))
        if sender.done(now):
            return
        wake = sender.wake_at(now)
        happened = yield Take(None if wake is None else max(0.0, wake - session.clock()), sender.wants)
        now = session.clock()
        match happened:
            case Input(body):
                sender.offer(body)
            case Ended(broken):
                sender.end()
                if broken:
                    sender.stop(now)
            case Answered(Send() as send, answer):
                before = sender.result().requests
                _outcome(session, sender, send, answer, path)
                if (result := sender.result()).requests > before:
                    on_progress(result)
            case Answered(str() as url, answer):
                _told(session, sender, url, answer, path)


def _outcome(
    session: Session, sender: Sender, send: Send, answer: httpx.Response | httpx.TransportError, path: str
) -> None:
    now = session.clock()
    call = _piece(path, send, "")
    if not isinstance(answer, httpx.Response):
        sender.broken(send, unreachable(session, answer, send.url), now)
        return
    session.answered = True
    if answer.is_success:
        try:
            sender.accepted(send, int(mapping(answer)["accepted"]), now)
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as reason:
            sender.refused(send, ClientError(f"the answer is not what a Penstock node sends ({reason})"), now)
        return
    error = failure(call, answer)
    if answer.status_code == 421:
        sender.elsewhere(send, error, now)
    elif answer.status_code in _AGAIN:
        sender.later(send, retry_after(answer), error, now)
    else:
        sender.refused(send, error, now)


def _told(session: Session, sender: Sender, url: str, answer: httpx.Response | httpx.TransportError, path: str) -> None:
    now = session.clock()
    answered = isinstance(answer, httpx.Response)
    if isinstance(answer, httpx.Response) and answer.is_success:
        try:
            sender.learned(url, _addresses(answer), now)
            return
        except msgspec.MsgspecError:
            pass
    sender.untold(url, now, answered=answered)


def _finished(sender: Sender) -> PushResult:
    """The result, or the error with what was acknowledged all the same."""
    result = sender.result()
    if sender.error is None:
        return result
    sender.error.of_push(result)
    raise sender.error


def _addresses(answer: httpx.Response) -> Addresses:
    return msgspec.json.decode(answer.content, type=Addresses)


def _question(path: str, url: str, seconds: float | None) -> Call[Addresses]:
    return Call("GET", path, _addresses, url=url, repeatable=True, timeout=seconds, connect=seconds)


def _piece(path: str, send: Send, cluster: str) -> Call[Any]:
    headers = {
        "content-type": "application/x-ndjson",
        "penstock-client": send.client,
        "penstock-seq": str(send.seq),
    }
    if send.lane is not None:
        headers["penstock-lane"] = str(send.lane)
    if send.url and cluster:
        headers["penstock-cluster"] = cluster
    connect = CONNECT if send.url else None
    return Call("POST", path, mapping, headers=headers, body=send.body.content, url=send.url, connect=connect)
