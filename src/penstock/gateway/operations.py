"""`/v1/operations`: changes of models as they go through the cluster, and how their outcome is told."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from penstock.cluster.service import ChangePlan, ModelView, NodeService, OperationView, Outcome
from penstock.gateway.answer import answer
from penstock.gateway.asking import User
from penstock.gateway.problems import rolled_back
from penstock.gateway.schemas import Responses, described, failing

PATH = "/v1/operations"


def told(outcome: Outcome, done: int = 200) -> Response:
    """The answer to a change: 200 with the plan, 202 while it goes on, 503 when it was rolled back, else `done`."""
    if outcome.plan is not None:
        return answer(outcome.plan)
    operation = outcome.operation
    if operation is not None and outcome.pending:
        return answer(operation, 202, {"location": f"{PATH}/{operation.id}", "retry-after": "1"})
    if operation is not None and operation.phase == "aborted":
        raise rolled_back(operation)
    if outcome.model is None or done == 204:
        return Response(status_code=204)
    headers = {"location": f"/v1/models/{outcome.model.name}"} if done == 201 else {}
    return answer(outcome.model, done, headers)


def changing(done: int, *errors: int) -> Responses:
    """`responses=` of a route that answers with `told`: what it says when it is done, and its errors."""
    responses = described(OperationView, status=202, text="It goes on; `Location` tells how far it is")
    if done == 200:
        responses |= described(ModelView, ChangePlan, text="Done; with `dry_run` what would happen")
    else:
        responses |= described(ChangePlan, text="What would happen (`dry_run`)")
    if done == 201:
        responses |= described(ModelView, status=201, text="Every node has it")
    return responses | failing(409, 422, 503, *errors)


def router(service: NodeService) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["operations"], prefix=PATH)

    @routes.get("", summary="List", responses=described(list[OperationView]) | failing(503))
    async def operations() -> Response:
        """Operations that go on, and those that ended within the last seconds; the latest first."""
        return answer(await service.operations())

    @routes.get("/{id}", summary="Show", responses=described(OperationView) | failing(404, 503))
    async def operation(id: str) -> Response:
        """One operation: its phase, and what each node says."""
        return answer(await service.operation(id))

    @routes.delete("/{id}", summary="Cancel", responses=described(OperationView) | failing(404, 409, 503))
    async def cancel(id: str, user: User) -> Response:
        """Roll it back; 409 when it is decided already."""
        return answer(await service.cancel_operation(id, user))

    return routes
