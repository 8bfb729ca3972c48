"""`/v1/streams`: records come in here. 200 means retained, 429 means not now, anything else means nothing was taken.

A source has a lane for each executor that reads it. Any node takes records for any lane; clients that send much ask for
the lanes' addresses and send to the nodes where they are.
"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from penstock.cluster.service import Addresses, Lane, NodeService, NoRoom
from penstock.gateway.answer import answer
from penstock.gateway.problems import Problem, later
from penstock.gateway.schemas import Responses, described, failing

JSON = "application/json"
NDJSON = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines", ""})

_TAKEN: Responses = {
    200: {"description": "All records are retained", "content": {JSON: {"example": {"accepted": 2}}}},
}


def router(service: NodeService, max_push: int) -> APIRouter:
    """The routes. `max_push`: bytes that one request may bring."""
    routes = APIRouter(tags=["streams"])

    @routes.get(
        "/v1/streams/{group}/{name}/{source}",
        summary="Where records can be sent",
        responses=described(Addresses) | failing(404, 409, 503),
    )
    async def addresses(group: str, name: str, source: str) -> Response:
        """The lanes of a source: executor, node and that node's address. Ask again when a push fails, and now and then:
        executors move, and `revision` is another one then."""
        return answer(await service.addresses(f"{group}/{name}", source))

    @routes.post(
        "/v1/streams/{group}/{name}/{source}",
        summary="Push records",
        responses=_TAKEN | failing(404, 409, 413, 415, 421, 429, 503),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/x-ndjson": {"schema": {"type": "string"}, "example": '{"v": 1}\n{"v": 2}\n'},
                    JSON: {"schema": {"type": "array", "items": {}}, "example": [{"v": 1}, {"v": 2}]},
                },
            },
            "parameters": [
                {"name": name, "in": "header", "schema": {"type": kind}, "description": text}
                for name, kind, text in (
                    ("Penstock-Client", "string", "Who sends; with Penstock-Seq it removes repeats."),
                    ("Penstock-Seq", "integer", "Grows with every request of this client to this source."),
                    ("Idempotency-Key", "string", "Removes repeats of one request, instead of the pair above."),
                    ("Penstock-Lane", "integer", "Which lane takes them; a repeat has to name the same one."),
                    ("Penstock-Cluster", "string", "`cluster` of the addresses; a node of another one answers 421."),
                )
            ],
        },
    )
    async def push(request: Request, group: str, name: str, source: str) -> Response:
        """Push records as NDJSON (one JSON value per line) or as a JSON array: all of them or none."""
        client, seq = sender(request)
        to = lane(request)
        body = await read_body(request, max_push)
        records = decode(request.headers.get("content-type", ""), body)
        if not records:
            return answer({"accepted": 0})
        taken = await service.push(f"{group}/{name}", source, records, client, seq, to)
        if isinstance(taken, NoRoom):
            detail = f"{group}/{name}/{source} has no room for {len(records)} records now; nothing was taken"
            raise later(429, detail, taken.retry_after)
        return answer({"accepted": taken.taken})

    return routes


def sender(request: Request) -> tuple[str | None, int | None]:
    """(client, seq) from headers, query, or `Idempotency-Key`; a problem when only half of it is there."""
    headers, query = request.headers, request.query_params
    client = headers.get("penstock-client") or query.get("client")
    text = headers.get("penstock-seq") or query.get("seq")
    if client is None and text is None:
        key = headers.get("idempotency-key")
        return (None, None) if key is None else (f"key:{key}", 1)
    if client is None or text is None:
        raise Problem(422, "client and seq belong together; give both (Penstock-Client, Penstock-Seq) or none")
    return client, _number("seq", text)


def lane(request: Request) -> Lane:
    """Where the records are to go, from headers or query."""
    headers, query = request.headers, request.query_params
    text = headers.get("penstock-lane") or query.get("lane")
    number = None if text is None else _number("lane", text)
    return Lane(number, headers.get("penstock-cluster", ""))


def _number(name: str, text: str) -> int:
    # `isdecimal` alone would let through digits of other scripts, and a number beyond 64 bits cannot travel
    if not (text.isascii() and text.isdecimal()) or len(text) > 19 or int(text) >= 2**63:
        raise Problem(422, f"{name} must be a whole number from 0 on, not {text[:40]!r}")
    return int(text)


async def read_body(request: Request, limit: int) -> bytes:
    """The body, refused with 413 as soon as it is longer than `limit`."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise Problem(415, f"the body is encoded with {encoding!r}; send it plain")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise Problem(413, f"one push may bring {limit} bytes; send the records in smaller requests")
    return bytes(body)


def decode(content_type: str, body: bytes) -> list[Any]:
    """The records of a body. A problem names the line that is not JSON."""
    kind, _, parameters = content_type.lower().partition(";")
    kind = kind.strip()
    charset = parameters.partition("charset=")[2].strip(' "')
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise Problem(415, f"the body is said to be {charset!r}; JSON is UTF-8")
    if kind == JSON:
        return _array(body)
    if kind in NDJSON or kind.startswith("text/"):
        return _lines(body)
    raise Problem(415, f"records come as application/x-ndjson or application/json, not {kind!r}")


def _array(body: bytes) -> list[Any]:
    try:
        records = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(422, f"the body is not JSON: {error}") from None
    if not isinstance(records, list):
        raise Problem(422, f"the body must be a JSON array of records, not a single {_json_type(records)}")
    return records


def _lines(body: bytes) -> list[Any]:
    decoder = msgspec.json.Decoder()
    try:
        records = decoder.decode_lines(body)
        # It also takes several values on a line; then, with blank lines, and to name a bad line, look at each.
        if len(records) == body.count(b"\n") + (not body.endswith(b"\n")):
            return records
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    records = []
    for number, line in enumerate(body.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            records.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            shown = line[:80].decode("utf-8", "backslashreplace")
            raise Problem(422, f"line {number} is not JSON: {error}: {shown}; nothing was taken", line=number) from None
    return records


def _json_type(value: Any) -> str:
    names = {dict: "object", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
