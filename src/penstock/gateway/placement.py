"""`/v1/placement` and `/v1/rebalance`: which executor runs where, and where it had better be."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from penstock.cluster.service import NodeService, NotFound, PlacementView, RebalanceView
from penstock.gateway.answer import answer
from penstock.gateway.schemas import described, failing


class Rebalance(BaseModel):
    """What to look for."""

    model_config = ConfigDict(extra="forbid")
    dry_run: bool = Field(False, description="Change nothing; answer what would be better.")
    strategy: str | None = Field(None, min_length=1, description="Its name; default: the cluster's.")
    model: str | None = Field(None, min_length=1, description="Only its executors may move; default: all.")


def router(service: NodeService) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["cluster"])

    @routes.get("/v1/placement", summary="Placement", responses=described(list[PlacementView]) | failing(404, 503))
    async def placement(model: str | None = None) -> Response:
        """Assignment, load, resources and measured traffic of one model, or of all that are placed."""
        if model is not None:
            return answer([await service.placement(model)])
        placed = []
        for view in await service.models():
            try:
                placed.append(await service.placement(view.name))
            except NotFound:  # deleted since the list was made
                continue
        return answer([view for view in placed if view.assignment])

    @routes.post(
        "/v1/rebalance",
        summary="Rebalance",
        responses=described(RebalanceView)
        | described(RebalanceView, status=202, text="The moves have begun")
        | failing(404, 409, 422, 503),
    )
    async def rebalance(body: Rebalance | None = None) -> Response:
        """A better placement for the traffic and load of the last seconds: cut, load and latency before and after, the
        moves, and the reason. Without `dry_run` the moves that are worth it are begun, a few at a time (202), if there
        are any; 409 when what would have to move cannot; 422 names the limit that no placement keeps."""
        wanted = body or Rebalance(dry_run=False, strategy=None, model=None)
        found = await service.rebalance(dry_run=wanted.dry_run, strategy=wanted.strategy, model=wanted.model)
        return answer(found, 202 if found.apply and not found.dry_run else 200)

    return routes
