"""`/v1/nodes`: the members of the cluster."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from penstock.cluster.service import MetricsView, NodeService, NodeView
from penstock.gateway.answer import answer
from penstock.gateway.schemas import described, failing


def router(service: NodeService) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["cluster"])

    @routes.get("/v1/nodes", summary="Members", responses=described(list[NodeView]) | failing(503))
    async def nodes() -> Response:
        """The members, and those that were lost a short while ago."""
        return answer(await service.nodes())

    @routes.get("/v1/metrics", summary="Metrics as JSON", responses=described(MetricsView) | failing(503))
    async def metrics() -> Response:
        """Nodes, models with their executors, and the traffic matrices: what `penstock top` shows."""
        return answer(await service.metrics())

    return routes
