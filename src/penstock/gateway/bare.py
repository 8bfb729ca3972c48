"""Routes without FastAPI's layers, for requests whose answer takes less time than a validation."""

from __future__ import annotations

from starlette.routing import Route
from starlette.types import Receive, Scope, Send


class BareRoute(Route):
    """A Starlette route that leaves itself in the scope as FastAPI's routes do, so that metrics can name it."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self
        await super().handle(scope, receive, send)
