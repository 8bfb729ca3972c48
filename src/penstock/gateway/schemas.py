"""The service's structs in the OpenAPI document: msgspec describes them, FastAPI only carries the description."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from penstock.gateway.problems import MEDIA_TYPE, ProblemDetails

Responses: TypeAlias = dict[int | str, dict[str, Any]]

_REF = "#/components/schemas/{name}"
_described: dict[str, Any] = {}

_MEANING = {
    401: "The token is missing or wrong",
    403: "Not from here: a foreign host name, origin, or no node of this cluster",
    404: "There is no such thing",
    408: "The sender fell silent",
    409: "The present state forbids it",
    413: "Larger than it may be",
    415: "A media type or encoding that is not taken",
    421: "Meant for another cluster",
    422: "Not valid; `detail` says what to change",
    429: "No room now; come back after `Retry-After`",
    503: "Not now, or rolled back: `nodes` gives the reasons, `operation` its id",
}


def described(*types: Any, status: int = 200, text: str = "Done") -> Responses:
    """`responses=` of a route that answers with one of `types`."""
    return {status: {"description": text, "content": {"application/json": {"schema": _schema(*types)}}}}


def failing(*statuses: int) -> Responses:
    """`responses=` for the errors that a route is known for, beside those that every route can have."""
    schema = _schema(ProblemDetails)
    return {
        status: {"description": _MEANING[status], "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in sorted({401, 403, 422, *statuses})
    }


def _schema(*types: Any) -> dict[str, Any]:
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    _described.update(components)
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}


def openapi_responses(responses: Responses) -> dict[str, Any]:
    """The same for a path that is written into the document by hand."""
    return {str(status): response for status, response in responses.items()}


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
