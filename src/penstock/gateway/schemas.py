"""The service's structs in the OpenAPI document: msgspec describes them, FastAPI only carries the description."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_REF = "#/components/schemas/{name}"
_described: dict[str, Any] = {}


def described(type_: Any, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route that answers with `type_`."""
    (schema,), components = msgspec.json.schema_components([type_], ref_template=_REF)
    _described.update(components)
    return {status: {"description": "Done", "content": {"application/json": {"schema": schema}}}}


def install(app: FastAPI, paths: dict[str, Any]) -> None:
    """Let `app`'s OpenAPI document know the described structs, and `paths` that are not FastAPI's."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            made.setdefault("components", {}).setdefault("schemas", {}).update(_described)
            made["paths"].update(paths)
            app.openapi_schema = made
        return app.openapi_schema

    setattr(app, "openapi", document)  # noqa: B010 - FastAPI's documented way to extend the document
