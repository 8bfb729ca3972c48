"""`/v1/events`, `/v1/log` and the logs of models: what happens, as a stream of Server-Sent Events or as a list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Header, Query
from starlette.responses import Response, StreamingResponse

from penstock.cluster.service import LogEntry, NodeService
from penstock.gateway.answer import answer, encode
from penstock.gateway.schemas import Responses, described, failing

EVENTS = "text/event-stream"


def router(service: NodeService, heartbeat: float) -> APIRouter:
    """The routes. `heartbeat`: seconds of silence after which a comment is sent, so that both ends notice a break."""
    routes = APIRouter(tags=["events"])

    @routes.get("/v1/log", summary="Log", responses=described(list[LogEntry]) | failing(503))
    async def log(
        model: str | None = None, after: str | None = None, limit: int = Query(100, ge=1, le=10_000)
    ) -> Response:
        """The last entries, or the first ones after `after`; oldest first."""
        return answer(await service.log(_full(model), limit, after))

    @routes.get(
        "/v1/events",
        summary="Follow",
        responses=_stream() | failing(503),
    )
    async def events(
        model: str | None = None, after: str | None = None, last_event_id: str | None = Header(None)
    ) -> Response:
        """Entries as they come, from now or after `Last-Event-ID` (or `after`)."""
        return streamed(service.follow(_full(model), last_event_id or after), heartbeat)

    @routes.get(
        "/v1/models/{group}/{name}/logs",
        tags=["models"],
        summary="What a model says",
        responses=_logs() | failing(404, 503),
    )
    async def logs(
        group: str,
        name: str,
        limit: int = Query(100, ge=1, le=10_000),
        after: str | None = None,
        follow: bool = Query(False, description="New entries as they come, as Server-Sent Events."),
        last_event_id: str | None = Header(None),
    ) -> Response:
        """What the model's code printed and logged, and its errors: the last entries, or the first ones after `after`;
        oldest first."""
        model = f"{group}/{name}"
        if not follow:
            return answer(await service.logs(model, limit, after))
        await service.model(model)  # a stream that has begun can no longer say 404
        return streamed(service.follow_logs(model, last_event_id or after), heartbeat)

    return routes


def _stream() -> Responses:
    return {200: {"description": "Server-Sent Events", "content": {EVENTS: {}}}}


def _logs() -> Responses:
    """A list, or a stream of its entries."""
    made = described(list[LogEntry])
    content: dict[str, Any] = made[200]["content"]
    content[EVENTS] = {}
    return made


def streamed(entries: AsyncIterator[LogEntry], heartbeat: float) -> Response:
    """A stream of events as an answer."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(as_events(entries, heartbeat), headers=headers, media_type=EVENTS)


def _full(model: str | None) -> str | None:
    """A bare name is one of the group `default`."""
    return model if model is None or "/" in model else f"default/{model}"


async def as_events(entries: AsyncIterator[LogEntry], heartbeat: float) -> AsyncIterator[bytes]:
    """Entries in the wire format of Server-Sent Events, with a comment in every pause of `heartbeat` seconds."""
    yield b": penstock\n\n"
    waiting = asyncio.ensure_future(anext(entries))
    try:
        while True:
            await asyncio.wait({waiting}, timeout=heartbeat)
            if not waiting.done():
                yield b":\n\n"
                continue
            try:
                entry = waiting.result()
            except StopAsyncIteration:
                return
            yield event(entry)
            waiting = asyncio.ensure_future(anext(entries))
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        close = getattr(entries, "aclose", None)
        if close is not None:
            await close()


def event(entry: LogEntry) -> bytes:
    """One event. JSON has no line breaks, so one `data:` line always suffices."""
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (entry.id.encode(), entry.kind.encode(), encode(entry))
