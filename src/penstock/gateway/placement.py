"""`/v1/placement`: which executor runs where."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from penstock.cluster.service import NodeService, NotFound, PlacementView
from penstock.gateway.answer import answer
from penstock.gateway.schemas import described, failing


def router(service: NodeService) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["cluster"])

    @routes.get("/v1/placement", summary="Placement", responses=described(list[PlacementView]) | failing(404, 503))
    async def placement(model: str | None = None) -> Response:
        """Assignment, load and measured traffic of one model, or of all that are placed."""
        if model is not None:
            return answer([await service.placement(model)])
        placed = []
        for view in await service.models():
            try:
                placed.append(await service.placement(view.name))
            except NotFound:  # deleted since the list was made
                continue
        return answer([view for view in placed if view.assignment])

    return routes
