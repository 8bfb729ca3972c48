"""The gateway as one ASGI application: it answers for one node and runs nobody's code."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from penstock.cluster.service import NodeService
from penstock.gateway import (
    events,
    health,
    internal,
    metrics,
    models,
    nodes,
    operations,
    placement,
    problems,
    schemas,
    state,
    streams,
)
from penstock.gateway.guard import Guard
from penstock.gateway.settings import GatewaySettings


def create_app(service: NodeService, settings: GatewaySettings | None = None) -> FastAPI:
    """The application that serves `service`.

    Raises `UsageError` when `settings` would open the node to other machines without a token and TLS.
    """
    chosen = settings or GatewaySettings()
    chosen.check()
    app = FastAPI(
        title="Penstock",
        version=version("penstock"),
        description="Keep many small stream computations running on a cluster.",
        redirect_slashes=False,
    )
    registry = CollectorRegistry()
    app.router.routes.extend([*state.routes(service), internal.route(service)])
    for router in (
        health.router(service),
        metrics.router(service, registry),
        nodes.router(service),
        models.router(service, chosen),
        operations.router(service),
        streams.router(service, chosen.max_push),
        placement.router(service),
        events.router(service, chosen.heartbeat),
    ):
        app.include_router(router)
    problems.install(app)
    schemas.install(app, state.OPENAPI)
    app.add_middleware(Guard, settings=chosen)
    app.add_middleware(metrics.RequestMetrics, registry=registry)
    return app
