from __future__ import annotations

import json
import socket
import threading

import pytest
from tests.connectors.conftest import read_until, wait_for
from tests.plugins.services import address

from penstock.connectors import mqtt
from penstock.errors import ConnectorError, UsageError
from penstock.flow.batch import Keyed

pytestmark = pytest.mark.services("mqtt")


@pytest.fixture
def url():
    return "mqtt://{}:{}".format(*address("mqtt"))


@pytest.fixture
def topic(unique, url, ctx):
    """A topic whose session is removed from the broker at the end."""
    yield f"{unique}/in"
    reader = mqtt(url, f"{unique}/in", client_id=unique, session_seconds=0, qos=0).open("x", None, ctx)
    wait_for(lambda: reader._lost_at is None)
    reader.close()


def subscribed(source, ctx, offset=None):
    reader = source.open(source.partitions()[0], offset, ctx)
    wait_for(lambda: reader._lost_at is None)
    return reader


def publish(url, topic, records, ctx, **options):
    writer = mqtt(url, topic, **options).open(ctx)
    writer.write(records)
    writer.close()


def test_what_is_published_is_read(url, topic, unique, ctx):
    woken = threading.Event()
    ctx.wake = woken.set
    reader = subscribed(mqtt(url, topic, client_id=unique), ctx)
    publish(url, topic, [{"a": 1}, Keyed("k", 2), [3]], ctx)
    assert woken.wait(20)
    assert read_until(reader, 3) == [{"a": 1}, {"key": "k", "value": 2}, [3]]
    reader.retained(reader.offset())
    reader.close()


def test_unacknowledged_messages_come_again_and_acknowledged_ones_do_not(url, topic, unique, ctx):
    source = mqtt(url, topic, client_id=unique)
    reader = subscribed(source, ctx)
    publish(url, topic, list(range(300)), ctx)
    assert read_until(reader, 300) == list(range(300))
    assert len(reader._unsafe) == 300
    reader.retained(reader.offset() - 100)
    offset = reader.offset()
    reader.close()
    again = subscribed(source, ctx, offset)
    again.retained(offset)  # of the run before: acknowledges nothing here
    assert read_until(again, 100) == list(range(200, 300))
    again.retained(again.offset())
    again.close()
    last = subscribed(source, ctx)
    publish(url, topic, [{"end": 1}], ctx)
    assert read_until(last, 1) == [{"end": 1}]
    last.retained(last.offset())
    last.close()


def test_messages_that_came_while_the_flow_was_down(url, topic, unique, ctx):
    source = mqtt(url, topic, client_id=unique)
    subscribed(source, ctx).close()
    publish(url, topic, [1, 2, 3], ctx)
    reader = subscribed(source, ctx)
    assert read_until(reader, 3) == [1, 2, 3]
    reader.retained(reader.offset())
    reader.close()


def test_the_broker_waits_while_nothing_is_acknowledged(url, topic, unique, ctx):
    reader = subscribed(mqtt(url, topic, client_id=unique, in_flight=50), ctx)
    publish(url, topic, list(range(500)), ctx)
    got = read_until(reader, 50)
    assert reader.read(1000) == []
    assert got == list(range(50))
    while len(got) < 500:
        reader.retained(reader.offset())
        got += read_until(reader, 1)
        assert len(reader._unsafe) <= 50
    assert got == list(range(500))
    reader.retained(reader.offset())
    reader.close()


def test_a_lost_connection_brings_every_message_once(url, topic, unique, ctx):
    reader = subscribed(mqtt(url, topic, client_id=unique), ctx)
    publish(url, topic, list(range(100)), ctx)
    assert read_until(reader, 100) == list(range(100))
    reader._client.socket().shutdown(socket.SHUT_RDWR)
    wait_for(lambda: reader._lost_at is not None)
    assert reader.next_at() is not None
    wait_for(lambda: reader._lost_at is None)
    publish(url, topic, [100], ctx)
    assert read_until(reader, 1) == [100]
    reader.retained(reader.offset())
    wait_for(lambda: not reader._held)
    reader.close()


def test_payloads_and_topics(url, topic, unique, ctx, skipped):
    ctx.on_bad_record = skipped
    reader = subscribed(mqtt(url, topic, client_id=unique, with_topic=True), ctx)
    publish(url, lambda record: topic, ["not json", b"\xff", '{"ok": 1}'], ctx)
    assert read_until(reader, 1) == [{"topic": topic, "payload": {"ok": 1}}]
    assert skipped.raw == [b"not json", b"\xff"]
    assert topic in skipped.errors[0]
    reader.retained(reader.offset())
    reader.close()
    reader = subscribed(mqtt(url, topic, client_id=unique, decode="bytes"), ctx)
    publish(url, topic, [b"\xff"], ctx)
    assert read_until(reader, 1) == [b"\xff"]
    reader.retained(reader.offset())
    reader.close()


def test_at_most_once_without_a_session(url, topic, unique, ctx):
    reader = subscribed(mqtt(url, topic, client_id=unique, qos=0, in_flight=5, decode="text"), ctx)
    wait_for(lambda: reader._ever_connected)
    publish(url, topic, [str(n) for n in range(50)], ctx)
    assert read_until(reader, 50) == [str(n) for n in range(50)]
    assert not reader._unsafe
    reader.close()


def test_an_unreachable_broker_is_named(ctx, clock):
    reader = mqtt("mqtt://127.0.0.1:1", "t").open("t", None, ctx)
    assert reader.read(1) == []
    clock.advance(11)
    assert reader.next_at() is not None
    with pytest.raises(ConnectorError, match=r"127\.0\.0\.1:1 could not be reached for 10 s: Connection refused"):
        reader.read(1)
    reader.close()
    with pytest.raises(ConnectorError, match=r"127\.0\.0\.1:1 could not be reached for 0.2 s"):
        mqtt("mqtt://127.0.0.1:1", "t", patience=0.2).open(ctx)


def test_an_impossible_topic_is_named(url, ctx):
    writer = mqtt(url, "a/#").open(ctx)
    with pytest.raises(ConnectorError, match="nothing can be published to 'a/#'"):
        writer.write([1])
    writer.abort()


def test_impossible_options():
    with pytest.raises(UsageError, match="not a broker's URL"):
        mqtt("http://x", "t")
    with pytest.raises(UsageError, match="0 or 1"):
        mqtt("mqtt://x", "t", qos=2)
    with pytest.raises(UsageError, match="topic was expected"):
        mqtt("mqtt://x", "")
    assert "secret" not in repr(mqtt("mqtt://u:secret@x", "t"))
    assert json.dumps(mqtt("u@x:99", "t").describe()) == '"mqtt t at x:99"'
