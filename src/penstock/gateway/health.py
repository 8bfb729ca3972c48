"""`/healthz` and `/readyz`: for probes, open to everybody who reaches the port."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from penstock.cluster.service import Health, NodeService
from penstock.gateway.answer import answer
from penstock.gateway.problems import later
from penstock.gateway.schemas import described, failing


def router(service: NodeService) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz", summary="Liveness", responses=described(Health))
    async def healthz() -> Response:
        """200 as long as this process answers; says which node it is and whether it leads."""
        return answer(await service.health())

    @routes.get("/readyz", summary="Readiness", responses=failing(503))
    async def readyz() -> Response:
        """200 when the node is synchronised with its cluster and takes work, else 503 with the reasons."""
        reasons = await service.ready()
        if reasons:
            raise later(503, f"{service.node_id} is not ready: {'; '.join(reasons)}", 1.0, reasons=reasons)
        return answer({"ready": True, "node": service.node_id})

    return routes
