"""`/v1/state`: look-ups in keyed state. Plain Starlette routes: no validation layer between a key and its value."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from penstock.cluster.service import NodeService
from penstock.gateway.answer import answer
from penstock.gateway.bare import BareRoute
from penstock.gateway.problems import Problem
from penstock.gateway.schemas import failing, openapi_responses

MAX_PAGE = 1000


def routes(service: NodeService) -> list[BaseRoute]:
    """The routes."""

    async def lookup(request: Request) -> Response:
        path = request.path_params
        model, step, text = f"{path['group']}/{path['name']}", path["step"], path["key"]
        key = typed_key(text, request.query_params.get("type", "str"))
        found = await service.lookup(model, step, key)
        if not found.found:
            raise Problem(404, f"{model}: step {step!r} holds nothing for the key {text!r}")
        return answer({"key": key, "value": found.value})

    async def listing(request: Request) -> Response:
        path, query = request.path_params, request.query_params
        limit = page_limit(query.get("limit", "100"))
        page = await service.listing(f"{path['group']}/{path['name']}", path["step"], limit, query.get("cursor"))
        items = [{"key": key, "value": value} for key, value in page.items]
        return answer({"items": items, "cursor": page.cursor})

    return [
        BareRoute("/v1/state/{group}/{name}/{step}", listing, methods=["GET"]),
        BareRoute("/v1/state/{group}/{name}/{step}/{key:path}", lookup, methods=["GET"]),
    ]


def typed_key(text: str, kind: str) -> Any:
    """The key that `text` stands for: `str` as it is (the service also tries a number), `int`, or `json`, whose arrays
    become tuples because keys are hashable."""
    if kind == "str":
        return text
    if kind == "int":
        try:
            return int(text)
        except ValueError:
            raise Problem(422, f"the key {text!r} is not a whole number") from None
    if kind == "json":
        try:
            return _hashable(msgspec.json.decode(text))
        except (msgspec.DecodeError, UnicodeError) as error:
            raise Problem(422, f"the key {text!r} is not JSON: {error}") from None
    raise Problem(422, f"type must be str, int or json, not {kind!r}")


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        raise Problem(422, "a JSON object cannot be a key")
    return value


def page_limit(text: str) -> int:
    """The page size from the query."""
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:9]) <= MAX_PAGE:
        raise Problem(422, f"limit must be a whole number from 1 to {MAX_PAGE}, not {text[:40]!r}")
    return int(text)


def _segment(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


_PATH = [_segment(name) for name in ("group", "name", "step")]


def _query(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": text}


OPENAPI: dict[str, Any] = {
    "/v1/state/{group}/{name}/{step}": {
        "get": {
            "tags": ["state"],
            "summary": "List state",
            "description": "A page of keys and values of a keyed step, ordered by key text.",
            "parameters": [
                *_PATH,
                _query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 100}, "Page size."),
                _query("cursor", {"type": "string"}, "The `cursor` of the page before."),
            ],
            "responses": {
                "200": {"description": '`{"items": [{"key", "value"}, …], "cursor": … or null}`'},
                **openapi_responses(failing(404, 409, 503)),
            },
        }
    },
    "/v1/state/{group}/{name}/{step}/{key}": {
        "get": {
            "tags": ["state"],
            "summary": "Look up state",
            "description": "The value that a keyed step holds for a key; 404 when there is none.",
            "parameters": [
                *_PATH,
                _segment("key"),
                _query("type", {"enum": ["str", "int", "json"], "default": "str"}, "How to read the key."),
            ],
            "responses": {
                "200": {"description": '`{"key": …, "value": …}`'},
                **openapi_responses(failing(404, 409, 503)),
            },
        }
    },
}
"""What the documentation says about the routes above, which FastAPI does not see."""
