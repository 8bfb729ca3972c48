"""A gateway without sockets, called through ASGI."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest
from tests.gateway.fake_service import FakeService
from tests.gateway.packages import package

from penstock.gateway.app import create_app
from penstock.gateway.settings import GatewaySettings


@pytest.fixture
def service():
    return FakeService()


@pytest.fixture
def calling(service):
    """`run(test)` runs `await test(http)` against a gateway; `settings=` replaces the default ones."""

    @asynccontextmanager
    async def connected(settings, **options):
        transport = httpx.ASGITransport(create_app(service, settings), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8700", **options) as http:
            yield http

    def run(test, settings=None, **options):
        async def main():
            async with connected(settings or GatewaySettings(), **options) as http:
                return await test(http)

        return asyncio.run(main())

    return run


@pytest.fixture
def ask(calling):
    """The answer to one request."""

    def request(method, path, settings=None, **options):
        return calling(lambda http: http.request(method, path, **options), settings)

    return request


async def receive(service, data):
    """The digest of a package that the service has received."""

    async def chunks():
        yield data

    return (await service.receive(chunks())).digest


@pytest.fixture
def words(service):
    """A model that is online."""

    async def start():
        await service.add_model(await receive(service, package()))
        return (await service.online("default/words")).model

    return asyncio.run(start())
