"""What every request passes first: who may come in, and how much it may bring. Plain ASGI, so that it costs little."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.gateway import internal, packages
from penstock.gateway.problems import Problem
from penstock.gateway.settings import GatewaySettings, is_loopback

OPEN_PATHS = frozenset({"/healthz", "/readyz", internal.PATH})
"""Probes carry no token, and nodes carry the cluster's own, which the service checks."""


class Guard:
    """Refuses strangers with 401 or 403 and oversized bodies with 413.

    Without a token only the loopback is served, and then a web page must not reach the node through the user's
    browser: requests for a foreign host name (DNS rebinding) or from a foreign origin are refused.
    """

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self.app = app
        self.settings = settings
        self.expected = None if settings.token is None else f"Bearer {settings.token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        problem = self._stranger(scope["path"], headers)
        limited = _Limited(receive, *self._limit(scope["method"], scope["path"]))
        if problem is None and limited.exceeded_by(headers.get("content-length", "")):
            problem = limited.problem()
        if problem is not None:
            await problem.response()(scope, receive, send)
            return
        await self.app(scope, limited, send)

    def _stranger(self, path: str, headers: Headers) -> Problem | None:
        if self.expected is None:
            return _foreign(headers)
        if path in OPEN_PATHS:
            return None
        given = headers.get("authorization", "").encode()
        if hmac.compare_digest(given, self.expected):
            return None
        cause = "the token is not right" if given else "this node needs a token"
        return Problem(
            401,
            f"{cause}; send it as `Authorization: Bearer …` (PENSTOCK_TOKEN, --token)",
            headers={"www-authenticate": "Bearer"},
        )

    def _limit(self, method: str, path: str) -> tuple[int, str]:
        """Bytes that the body may have, and what to do when it has more."""
        if packages.carries_package(method, path):
            return self.settings.max_package, "leave data out of the package, and read it from where it is"
        return self.settings.max_body, "send it in smaller pieces"


def _foreign(headers: Headers) -> Problem | None:
    host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    if not is_loopback(host):
        return Problem(403, f"this node serves this machine alone, and was asked for host {host!r}")
    origin = headers.get("origin")
    if origin is not None and not is_loopback(urlsplit(origin).hostname or ""):
        return Problem(403, f"a page from {origin} may not use this node")
    return None


class _Limited:
    """A `receive` that counts the body and stops at the limit, whatever Content-Length promised."""

    def __init__(self, receive: Receive, limit: int, remedy: str) -> None:
        self.receive = receive
        self.limit = limit
        self.remedy = remedy
        self.taken = 0

    def exceeded_by(self, length: str) -> bool:
        """Whether a body of the promised length is too large."""
        return length.isdigit() and int(length) > self.limit

    def problem(self) -> Problem:
        """The problem of a body above the limit."""
        return Problem(413, f"the body is larger than the limit of {self.limit} bytes; {self.remedy}")

    async def __call__(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.request":
            self.taken += len(message.get("body", b""))
            if self.taken > self.limit:
                raise self.problem()
        return message
