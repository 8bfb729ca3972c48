"""`/internal/call`: requests between nodes. The service checks their token and reads their body."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from penstock.cluster.service import NodeService
from penstock.gateway.bare import BareRoute
from penstock.gateway.problems import Problem

PATH = "/internal/call"


def route(service: NodeService) -> BareRoute:
    """The route."""

    async def call(request: Request) -> Response:
        try:
            reply = await service.internal(request.headers.get("x-penstock-cluster", ""), await request.body())
        except PermissionError:
            raise Problem(403, "the caller is not a node of this cluster") from None
        return Response(reply, media_type="application/msgpack")

    return BareRoute(PATH, call, methods=["POST"])
