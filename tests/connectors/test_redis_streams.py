from __future__ import annotations

import pytest
import redis
from tests.connectors.conftest import read_until
from tests.plugins.services import address

from penstock.connectors import redis_stream
from penstock.errors import ConnectorError, UsageError
from penstock.flow.batch import Keyed

pytestmark = pytest.mark.services("redis")


@pytest.fixture
def url():
    return "redis://{}:{}/0".format(*address("redis"))


@pytest.fixture
def client(url, unique):
    with redis.Redis.from_url(url) as client:
        yield client
        client.delete(unique)


def test_what_is_appended_is_read_and_every_offset_continues(url, unique, client, ctx):
    stream = redis_stream(url, unique)
    writer = stream.open(ctx)
    writer.write([{"n": n} for n in range(1200)])
    writer.write([Keyed("k", 1)])
    reader = stream.open(unique, None, ctx)
    got = reader.read(10) or read_until(reader, 1)
    offset, count = reader.offset(), len(got)
    got += read_until(reader, 1201 - count)
    assert got == [*({"n": n} for n in range(1200)), {"key": "k", "value": 1}]
    writer.write(["late"])
    assert read_until(reader, 1) == ["late"]
    reader.close()
    again = redis_stream(url, unique).open(unique, offset, ctx)
    assert read_until(again, 1202 - count) == [*got[count:], "late"]
    again.close()
    writer.close()


def test_other_entries_and_bad_ones(url, unique, client, ctx, skipped):
    ctx.on_bad_record = skipped
    client.xadd(unique, {"a": "1", "b": "x"})
    client.xadd(unique, {"record": "{"})
    client.xadd(unique, {"record": "5"})
    reader = redis_stream(url, unique, follow=False).open(unique, None, ctx)
    assert read_until(reader, 2) == [{"a": "1", "b": "x"}, 5]
    assert skipped.raw == [b"{"]
    reader.close()


def test_errors_are_named(url, unique, client, ctx):
    with pytest.raises(ConnectorError, match=r"Redis at 127\.0\.0\.1:1 could not be used for 0\.2 s"):
        redis_stream("redis://127.0.0.1:1", "s", deadline=0.2).open(ctx)
    client.set(unique, "not a stream")
    reader = redis_stream(url, unique).open(unique, None, ctx)
    with pytest.raises(ConnectorError, match="WRONGTYPE"):
        read_until(reader, 1)
    reader.close()
    with pytest.raises(UsageError, match="redis://"):
        redis_stream("http://x", "s")
