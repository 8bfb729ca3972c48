"""`/v1/events` and `/v1/log`: what happens in the cluster, as a stream of Server-Sent Events or as a list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, Header, Query
from starlette.responses import Response, StreamingResponse

from penstock.cluster.service import LogEntry, NodeService
from penstock.gateway.answer import answer, encode
from penstock.gateway.schemas import described


def router(service: NodeService, heartbeat: float) -> APIRouter:
    """The routes. `heartbeat`: seconds of silence after which a comment is sent, so that both ends notice a break."""
    routes = APIRouter(tags=["events"])

    @routes.get("/v1/log", summary="Log", responses=described(list[LogEntry]))
    async def log(
        model: str | None = None, after: str | None = None, limit: int = Query(100, ge=1, le=10_000)
    ) -> Response:
        """The last entries, or the first ones after `after`; oldest first."""
        return answer(await service.log(_full(model), limit, after))

    @routes.get(
        "/v1/events",
        summary="Follow",
        responses={200: {"description": "Server-Sent Events", "content": {"text/event-stream": {}}}},
    )
    async def events(
        model: str | None = None, after: str | None = None, last_event_id: str | None = Header(None)
    ) -> Response:
        """Entries as they come, from now or after `Last-Event-ID` (or `after`)."""
        entries = service.follow(_full(model), last_event_id or after)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(as_events(entries, heartbeat), headers=headers, media_type="text/event-stream")

    return routes


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
