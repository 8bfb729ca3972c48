"""Errors as RFC 9457 problem+json: every bad answer of the gateway has this one form, and never a stack trace."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from penstock.cluster.service import Conflict, Misdirected, NotFound, OperationView, RolledBack, Unavailable
from penstock.errors import (
    CheckpointError,
    ClusterError,
    CodecError,
    ConnectorError,
    PenstockError,
    StepError,
    UsageError,
    WorkerError,
)

logger = logging.getLogger("penstock.gateway")

MEDIA_TYPE = "application/problem+json"

STATUS_OF: tuple[tuple[type[PenstockError], int], ...] = (
    (NotFound, 404),
    (Conflict, 409),
    (Misdirected, 421),
    (UsageError, 422),
    (CodecError, 422),
    (StepError, 422),
    (ConnectorError, 502),
    (WorkerError, 503),
    (ClusterError, 503),
    (CheckpointError, 500),
)
"""The status of an error that the service raises; the first match counts."""


class ProblemDetails(msgspec.Struct, kw_only=True):
    """The body of an error (RFC 9457), for the OpenAPI document."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    """What was wrong and what to do."""
    nodes: dict[str, str] = {}
    """node -> its reason, where there are several."""
    operation: str = ""
    """The operation that was rolled back."""
    retry_after: float = 0.0
    """Seconds until another try makes sense; the header has it in whole seconds."""
    line: int = 0
    """Of a push: the line that is not JSON."""
    errors: list[str] = []
    """What is wrong with a query, header or body, field by field."""


class Problem(HTTPException):
    """An answer that is an error: raise it anywhere below a route or a middleware.

    `more` becomes extension members of the body (`nodes`, `line`, …).
    """

    def __init__(self, status: int, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.more = more

    def response(self) -> Response:
        """The answer itself."""
        return problem_response(self.status_code, self.detail, headers=self.headers, **self.more)


def problem_response(status: int, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """A problem+json response."""
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return Response(msgspec.json.encode(body, enc_hook=str), status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def from_error(error: PenstockError) -> Problem:
    """The problem that tells about a Penstock error."""
    status = next((status for kind, status in STATUS_OF if isinstance(error, kind)), 500)
    if isinstance(error, RolledBack):  # no Retry-After: the same request again gets the same answer
        return Problem(status, str(error), nodes=error.nodes, operation=error.operation)
    if isinstance(error, Unavailable):
        more = {"nodes": error.nodes} if error.nodes else {}
        return later(status, str(error), error.retry_after, **more)
    return Problem(status, str(error))


def rolled_back(operation: OperationView) -> Problem:
    """The problem of an operation that no node has carried out."""
    said = {node: text for node, text in operation.nodes.items() if text not in ("waiting", "ready", "done")}
    reason = f": {operation.reason}" if operation.reason else ""
    detail = f"{operation.kind} of {operation.model} was rolled back{reason}"
    return Problem(503, detail, nodes=said, operation=operation.id)


def later(status: int, detail: str, seconds: float, **more: Any) -> Problem:
    """A problem that passes: `Retry-After` in whole seconds, as HTTP wants it, and `retry_after` exactly."""
    headers = {"retry-after": str(max(1, math.ceil(seconds)))}
    return Problem(status, detail, headers=headers, retry_after=seconds, **more)


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem."""
    app.add_exception_handler(PenstockError, _on_penstock_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ClientDisconnect, _on_gone)
    app.add_exception_handler(Exception, _on_fault)


async def _on_penstock_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PenstockError)
    return from_error(error).response()


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, Problem):
        return error.response()
    detail = str(error.detail)
    if error.status_code == 404:
        detail = f"there is nothing at {request.url.path}; see /docs for what there is"
    elif error.status_code == 405:
        detail = f"{request.method} is not possible on {request.url.path}"
    return problem_response(error.status_code, detail, headers=error.headers)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    reasons = [f"{_place(item['loc'])}: {item['msg']}" for item in error.errors()]
    return problem_response(422, "; ".join(reasons) or "the request is not valid", errors=reasons)


async def _on_gone(request: Request, error: Exception) -> Response:
    """The caller left in the middle of its request: nobody reads this, and it is no fault of the node."""
    return problem_response(400, "the caller left before its request was complete")


def _place(location: tuple[int | str, ...]) -> str:
    """`("body", "path")` as people read it."""
    kind, *rest = location
    inner = ".".join(str(part) for part in rest)
    return f"{kind} {inner}" if inner else str(kind)


async def _on_fault(request: Request, error: Exception) -> Response:
    """A fault of the gateway itself: the message to the caller, the trace to the log alone."""
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem_response(500, f"the node failed to answer: {type(error).__name__}: {error}"[:500])
