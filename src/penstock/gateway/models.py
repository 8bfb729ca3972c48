"""`/v1/models`: adding, changing and removing models, bringing them online, and what is known of them."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from penstock.cluster.service import ModelView, MoveOrder, NodeService, SplitOrder, VersionView
from penstock.gateway.answer import answer
from penstock.gateway.asking import Asked
from penstock.gateway.operations import changing, told
from penstock.gateway.packages import JSON, MULTIPART, WHEEL, received
from penstock.gateway.schemas import described, failing
from penstock.gateway.settings import GatewaySettings

UPLOAD = (404, 408, 413, 415)
"""Errors of a route that takes a package, beside those of every change."""


class Online(BaseModel):
    """How to run it."""

    model_config = ConfigDict(extra="forbid")
    config: dict[str, Any] | None = Field(None, description="Values for `ps.config`; default: those it has.")
    executors: int | None = Field(None, ge=1, le=256, description="Executors per stage; default: the flow's own.")
    recovery: Literal["none", "passive", "active"] | None = Field(None, description="Default: what its package says.")
    replication: dict[str, int | float] | None = Field(
        None,
        description="How its standbys are kept up to date: checkpoint_interval (s), checkpoint_records, "
        "checkpoint_bytes, digest_every, handover_lag; default: what its package says.",
    )


class Move(BaseModel):
    """Which executor is to run where."""

    model_config = ConfigDict(extra="forbid")
    executor: str = Field(min_length=1, max_length=40, description="`stage.index`.")
    node: str = Field(min_length=1, max_length=200, description="The node that its primary is to be on.")


class Split(BaseModel):
    """Which executor is to be split."""

    model_config = ConfigDict(extra="forbid")
    what: str = Field(
        min_length=1, max_length=200, description="An executor (`stage.index`), or a step or the number of a stage."
    )


class Rollback(BaseModel):
    """Which version to bring back."""

    model_config = ConfigDict(extra="forbid")
    to: int | None = Field(None, ge=1, description="Its generation; default: the version before the present one.")
    live: bool = Field(False, description="While it is online, keeping its state.")


def router(service: NodeService, settings: GatewaySettings) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["models"], prefix="/v1/models")
    _queries(routes, service)
    _packages(routes, service, settings.patience)
    _changes(routes, service)
    return routes


def _queries(routes: APIRouter, service: NodeService) -> None:
    @routes.get("", summary="List", responses=described(list[ModelView]) | failing(503))
    async def models() -> Response:
        """The catalogue with status and rates."""
        return answer(await service.models())

    @routes.get("/{group}/{name}", summary="Show", responses=described(ModelView) | failing(404, 503))
    async def model(group: str, name: str) -> Response:
        """One model with its executors."""
        return answer(await service.model(f"{group}/{name}"))

    @routes.get(
        "/{group}/{name}/versions", summary="Versions", responses=described(list[VersionView]) | failing(404, 503)
    )
    async def versions(group: str, name: str) -> Response:
        """Its versions, the present one first; `rollback` brings an earlier one back."""
        return answer(await service.versions(f"{group}/{name}"))

    @routes.get(
        "/{group}/{name}/results", summary="Collected results", responses=described(list[Any]) | failing(404, 503)
    )
    async def results(
        group: str, name: str, step: str | None = None, limit: int = Query(100, ge=1, le=10_000)
    ) -> Response:
        """The latest records that reached its `collect` sinks, oldest first."""
        return answer(await service.results(f"{group}/{name}", step, limit))


def _body(*, alone: bool) -> dict[str, Any]:
    """The OpenAPI description of a body that is a package; `alone`: or a configuration without one."""
    wheel = {"schema": {"type": "string", "format": "binary"}}
    fields: dict[str, Any] = {"package": {"type": "string", "format": "binary"}, "config": {"type": "object"}}
    content: dict[str, Any] = {kind: wheel for kind in WHEEL if kind}
    if alone:
        settings = {"type": "object", "required": ["config"], "properties": {"config": {"type": "object"}}}
        content[JSON] = {"schema": settings}
    content[MULTIPART] = {"schema": {"type": "object", "properties": fields}}
    return {"requestBody": {"required": True, "content": content}}


def _packages(routes: APIRouter, service: NodeService, patience: float) -> None:
    @routes.post("", summary="Add", status_code=201, responses=changing(201, *UPLOAD), openapi_extra=_body(alone=False))
    async def add(
        request: Request,
        ask: Asked,
        name: str | None = Query(None, min_length=1, description="`group/name` or `name`; default: the package's own."),
    ) -> Response:
        """Add the model of a package (a wheel as `penstock model build` makes it), offline, on every node or on none.

        201 when every node has it; 409 when the name is taken; 422 when the package or its flow is not valid; 503 with
        the reasons of the nodes when it was rolled back."""
        upload = await received(request, service, patience)
        assert upload.package is not None, "without `json` there is a package or a problem"
        return told(await service.add_model(upload.package.digest, name, upload.config, ask=ask), 201)

    @routes.put("/{group}/{name}", summary="Update", responses=changing(200, *UPLOAD), openapi_extra=_body(alone=True))
    async def update(
        request: Request,
        group: str,
        name: str,
        ask: Asked,
        live: bool = Query(False, description="While it is online, keeping its state."),
    ) -> Response:
        """Give it another package, another configuration (`application/json`), or both (a form). 409 while it is
        online, unless `live`."""
        upload = await received(request, service, patience, json=True)
        digest = None if upload.package is None else upload.package.digest
        return told(await service.update_model(f"{group}/{name}", digest, upload.config, live=live, ask=ask))


def _changes(routes: APIRouter, service: NodeService) -> None:
    @routes.delete("/{group}/{name}", summary="Delete", status_code=204, responses=changing(204, 404))
    async def delete(group: str, name: str, ask: Asked) -> Response:
        """Remove it from every node; 409 while it is online."""
        return told(await service.delete_model(f"{group}/{name}", ask=ask), 204)

    @routes.post("/{group}/{name}/online", summary="Bring online", responses=changing(200, 404))
    async def online(group: str, name: str, ask: Asked, body: Online | None = None) -> Response:
        """Run it; answers when it runs. 409 when it is online already."""
        wanted = body or Online(config=None, executors=None, recovery=None, replication=None)
        model, replication = f"{group}/{name}", wanted.replication
        return told(
            await service.online(
                model, wanted.config, wanted.executors, wanted.recovery, replication=replication, ask=ask
            )
        )

    @routes.post(
        "/{group}/{name}/move",
        summary="Move an executor",
        responses=described(MoveOrder) | described(MoveOrder, status=202, text="It goes on") | failing(404, 409, 503),
    )
    async def move(group: str, name: str, body: Move, ask: Asked) -> Response:
        """The primary of an executor goes to another node, with its state, while everything runs. Answers when it is
        there, or stays where it is (`reason`); 202 when `wait` is over before. 409 for a model without replicas."""
        order = await service.move(f"{group}/{name}", body.executor, body.node, user=ask.user, wait=ask.wait)
        return answer(order, 200 if order.done or order.reason else 202)

    @routes.post(
        "/{group}/{name}/split",
        summary="Split an executor",
        responses=described(SplitOrder, status=202, text="It goes on") | failing(404, 409, 503),
    )
    async def split(group: str, name: str, body: Split, ask: Asked) -> Response:
        """An executor of a keyed stage gives half of its key groups to a new one, while everything runs; the events of
        the model tell how it goes. 409 for a model without replicas, and for a stage that cannot be divided."""
        return answer(await service.split(f"{group}/{name}", body.what, user=ask.user), 202)

    @routes.post("/{group}/{name}/offline", summary="Take offline", responses=changing(200, 404))
    async def offline(group: str, name: str, ask: Asked) -> Response:
        """Stop it; answers when its executors are gone. 409 when it is offline already."""
        return told(await service.offline(f"{group}/{name}", ask=ask))

    @routes.post("/{group}/{name}/rollback", summary="Roll back", responses=changing(200, 404))
    async def rollback(group: str, name: str, ask: Asked, body: Rollback | None = None) -> Response:
        """Bring an earlier version back. 409 while it is online, unless `live`, which also calls off a live update that
        is under way."""
        wanted = body or Rollback(to=None, live=False)
        return told(await service.rollback(f"{group}/{name}", wanted.to, live=wanted.live, ask=ask))
