"""Packages that arrive over HTTP: passed on to the node piece by piece, whichever way they are sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request

from penstock.cluster.service import NodeService, PackageView
from penstock.gateway.multipart import boundary_of, parts
from penstock.gateway.problems import Problem

COLLECTION = "/v1/models"
WHEEL = ("", "application/octet-stream", "application/zip", "application/x-wheel+zip")
"""Media types of a body that is the package itself."""
MULTIPART = "multipart/form-data"
JSON = "application/json"
PACKAGE_FIELDS = ("package", "file", "wheel")
"""Names of a form's field that holds the package, also when the sender names no file."""
LONGEST_CONFIG = 2**20
"""Bytes of a configuration."""


class Upload(msgspec.Struct):
    """What a request brought."""

    package: PackageView | None = None
    config: dict[str, Any] | None = None


class _Configuration(msgspec.Struct, forbid_unknown_fields=True):
    config: dict[str, Any]


def carries_package(method: str, path: str) -> bool:
    """Whether a request to this path may be as large as a package."""
    if method == "POST":
        return path == COLLECTION
    return method == "PUT" and path.startswith(f"{COLLECTION}/") and path.count("/") == COLLECTION.count("/") + 2


async def received(request: Request, service: NodeService, patience: float, *, json: bool = False) -> Upload:
    """Read a request that brings a package: as its body or as a field of a form, which may have `config` beside it.

    `json`: a body `{"config": {…}}` without a package is taken too. `patience`: seconds in which something must
    arrive. Raises problems 408, 415 and 422, and what `NodeService.receive` raises.
    """
    header = request.headers.get("content-type", "")
    kind = header.partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise Problem(415, f"the body is encoded with {encoding!r}; send it plain")
    body = arriving(request, patience)
    if kind in WHEEL:
        return Upload(await service.receive(_not_empty(body)))
    if kind == MULTIPART:
        return await _form(body, boundary_of(header), service, alone=json)
    if kind == JSON and json:
        return Upload(config=_configuration(await _all(body, "the body")))
    raise Problem(415, _unknown(kind, json))


def _unknown(kind: str, json: bool) -> str:
    what = f"a package is sent as {WHEEL[1]} or {MULTIPART}" + (f", a configuration as {JSON}" if json else "")
    remedy = "`penstock model build` makes a package of a flow; with curl: -H 'content-type: application/octet-stream'"
    return f"{what}, not as {kind!r}; {remedy}"


async def arriving(request: Request, patience: float) -> AsyncIterator[bytes]:
    """The pieces of a body. A sender that falls silent in the middle gets a 408."""
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(patience):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Problem(408, f"nothing arrived for {patience:g} s in the middle of the body") from None
        if piece:
            yield piece


async def _not_empty(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    empty = True
    async for chunk in chunks:
        empty = False
        yield chunk
    if empty:
        raise Problem(422, "the package is empty; send the wheel that `penstock model build` makes")


async def _form(chunks: AsyncIterator[bytes], boundary: bytes, service: NodeService, *, alone: bool) -> Upload:
    """One package and one configuration, in any order; `alone`: the configuration may come without a package."""
    upload = Upload()
    async for part in parts(chunks, boundary):
        if part.name == "config":
            if upload.config is not None:
                raise Problem(422, "the form has two fields `config`")
            upload.config = _settings(await _all(part.chunks, "the field `config`"))
        elif part.filename is not None or part.name in PACKAGE_FIELDS:
            if upload.package is not None:
                raise Problem(422, "the form has two packages; send one")
            upload.package = await service.receive(_not_empty(part.chunks))
        else:
            known = "`package` (the wheel) and `config` (a JSON object)"
            raise Problem(422, f"the form has a field {part.name[:80]!r}; it takes {known}")
    if upload.package is None and (upload.config is None or not alone):
        raise Problem(422, "the form has no package; send it as the field `package`")
    return upload


async def _all(chunks: AsyncIterator[bytes], what: str) -> bytes:
    """A small piece of JSON in memory."""
    gathered = bytearray()
    async for chunk in chunks:
        gathered += chunk
        if len(gathered) > LONGEST_CONFIG:
            raise Problem(413, f"{what} is larger than {LONGEST_CONFIG} bytes")
    return bytes(gathered)


def _configuration(body: bytes) -> dict[str, Any]:
    """`{"config": {…}}`."""
    try:
        return msgspec.json.decode(body, type=_Configuration).config
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(422, f'the body must be {{"config": {{…}}}}: {error}') from None


def _settings(body: bytes) -> dict[str, Any]:
    """`{…}`, the configuration itself."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(422, f"the field `config` must be a JSON object: {error}") from None
