from __future__ import annotations

import asyncio

import pytest
from tests.connectors.conftest import read_until, wait_for
from tests.plugins.services import address

from penstock.connectors import nats
from penstock.errors import ConnectorError, UsageError

pytestmark = pytest.mark.services("nats")


@pytest.fixture
def url():
    return "nats://{}:{}".format(*address("nats"))


@pytest.fixture
def subject(url, unique):
    """A subject with a stream of its own, removed at the end."""
    import nats as client

    async def admin(make):
        connection = await client.connect(url)
        stream = connection.jetstream()
        await (stream.add_stream(name=unique, subjects=[f"{unique}.>"]) if make else stream.delete_stream(unique))
        await connection.close()

    try:
        asyncio.run(admin(True))
    except client.js.errors.Error as error:
        pytest.skip(f"the NATS server has no JetStream: {error}")
    except client.errors.Error as error:
        pytest.skip(f"the NATS server has no JetStream: {error}")
    yield f"{unique}.in"
    asyncio.run(admin(False))


def test_messages_come_until_they_are_acknowledged(url, subject, unique, ctx, skipped):
    ctx.on_bad_record = skipped
    writer = nats(url, subject).open(ctx)
    writer.write([{"n": n} for n in range(700)])
    writer.close()
    source = nats(url, subject, durable=unique)
    reader = source.open(subject, None, ctx)
    assert read_until(reader, 700) == [{"n": n} for n in range(700)]
    reader.retained(reader.offset())
    wait_for(lambda: reader._loop is not None)
    reader.close()
    again = source.open(subject, None, ctx)
    writer = nats(url, subject).open(ctx)
    writer.write(["late"])
    writer.close()
    assert read_until(again, 1) == ["late"]
    again.retained(again.offset())
    again.close()


def test_errors_are_named(url, unique, ctx):
    with pytest.raises(ConnectorError, match=r"NATS at 127\.0\.0\.1:1 could not be reached"):
        nats("nats://127.0.0.1:1", "s", deadline=0.5).open(ctx)
    reader = nats(url, f"{unique}.none").open("x", None, ctx)
    with pytest.raises(ConnectorError, match="check that JetStream is on"):
        read_until(reader, 1)
    reader.close()
    with pytest.raises(UsageError, match="nats://"):
        nats("http://x", "s")
