"""`/v1/models`: adding, removing, and bringing online."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from penstock.cluster.service import ModelView, NodeService
from penstock.gateway.answer import answer
from penstock.gateway.schemas import described


class AddModel(BaseModel):
    """What to add."""

    model_config = ConfigDict(extra="forbid")
    path: str = Field(min_length=1, description="A file or directory present on every node, optionally `path:object`.")
    name: str | None = Field(None, min_length=1, description="`group/name` or `name`; default: the flow's own.")


class Online(BaseModel):
    """How to run it."""

    model_config = ConfigDict(extra="forbid")
    config: dict[str, Any] | None = Field(None, description="Values for `ps.config`.")
    executors: int | None = Field(None, ge=1, le=256, description="Executors per stage; default: the flow's own.")


def router(service: NodeService) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["models"], prefix="/v1/models")

    @routes.get("", summary="List", responses=described(list[ModelView]))
    async def models() -> Response:
        """The catalogue with status and rates."""
        return answer(await service.models())

    @routes.post("", summary="Add", status_code=201, responses=described(ModelView, 201))
    async def add(body: AddModel) -> Response:
        """Add a flow to the catalogue, offline. 409 when the name is taken, 422 when the flow does not build."""
        added = await service.add_model(body.path, body.name)
        return answer(added, 201, {"location": f"/v1/models/{added.name}"})

    @routes.get("/{group}/{name}", summary="Show", responses=described(ModelView))
    async def model(group: str, name: str) -> Response:
        """One model with its executors."""
        return answer(await service.model(f"{group}/{name}"))

    @routes.delete("/{group}/{name}", summary="Delete", status_code=204)
    async def delete(group: str, name: str) -> Response:
        """Remove it from the catalogue; 409 while it is online."""
        await service.delete_model(f"{group}/{name}")
        return Response(status_code=204)

    @routes.post("/{group}/{name}/online", summary="Bring online", responses=described(ModelView))
    async def online(group: str, name: str, body: Online | None = None) -> Response:
        """Run it; answers when it runs. 409 when it is online already."""
        wanted = body or Online(config=None, executors=None)
        return answer(await service.online(f"{group}/{name}", wanted.config, wanted.executors))

    @routes.post("/{group}/{name}/offline", summary="Take offline", responses=described(ModelView))
    async def offline(group: str, name: str) -> Response:
        """Stop it; answers when its executors are gone. 409 when it is offline already."""
        return answer(await service.offline(f"{group}/{name}"))

    @routes.get("/{group}/{name}/results", summary="Collected results")
    async def results(
        group: str, name: str, step: str | None = None, limit: int = Query(100, ge=1, le=10_000)
    ) -> Response:
        """The latest records that reached its `collect` sinks, oldest first."""
        return answer(await service.results(f"{group}/{name}", step, limit))

    return routes
