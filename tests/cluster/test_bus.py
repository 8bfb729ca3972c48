from __future__ import annotations

import asyncio
import contextlib

import pytest
from tests.cluster.nodes import asynchronous, until

from penstock.cluster.bus import Bus, BusDown, check_version
from penstock.errors import ClusterError, UsageError
from penstock.settings import ClusterSettings


@contextlib.asynccontextmanager
async def server(reply):
    """A server that answers each command (a list of words) with the bytes that `reply` returns; `None`: silence."""
    writers = []

    async def serve(reader, writer):
        writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                count = int((await reader.readuntil(b"\r\n"))[1:])
                words = []
                for _ in range(count):
                    size = int((await reader.readuntil(b"\r\n"))[1:])
                    words.append((await reader.readexactly(size + 2))[:-2].decode())
                answer = reply(words)
                if answer is not None:
                    writer.write(answer)
                    await writer.drain()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for writer in writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await listening.wait_closed()
        await asyncio.sleep(0.01)


def info(text):
    body = text.encode()
    return b"$%d\r\n%s\r\n" % (len(body), body)


def told_version(version):
    def reply(words):
        return info(f"# Server\r\nredis_version:{version}\r\n") if words[0] == "INFO" else b"+OK\r\n"

    return reply


@asynchronous
async def test_an_old_redis_is_refused_with_what_was_found_and_what_to_do():
    async with server(told_version("5.0.14")) as port:
        bus = Bus(f"redis://127.0.0.1:{port}/0", ClusterSettings())
        with pytest.raises(ClusterError, match=rf"127.0.0.1:{port} is Redis 5.0.14; 6.2 .*\n.*upgrade"):
            await bus.start()
        await bus.close()


@pytest.mark.parametrize(
    ("told", "good"),
    [
        ({"redis_version": "6.2.0"}, True),
        ({"redis_version": "7.0.15"}, True),
        ({"redis_version": "10.1"}, True),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.0"}, True),
        ({"redis_version": "6.0.16"}, False),
        ({"redis_version": "255.255.255"}, True),
        ({"redis_version": "nonsense"}, False),
        ({}, False),
    ],
)
def test_versions(told, good):
    if good:
        check_version(told, "here")
    else:
        with pytest.raises(ClusterError, match=r"6\.2 or later"):
            check_version(told, "here")


@asynchronous
async def test_nobody_listens():
    async with server(lambda words: None) as port:
        pass
    bus = Bus(f"redis://:secret@127.0.0.1:{port}/0", ClusterSettings())
    with pytest.raises(ClusterError) as caught:
        await bus.start()
    await bus.close()
    assert f"no Redis answers at 127.0.0.1:{port}" in str(caught.value)
    assert "--redis" in str(caught.value)
    assert "secret" not in str(caught.value)


@asynchronous
async def test_a_server_that_says_nothing_ends_in_an_error_not_in_a_hang():
    async with server(lambda words: None) as port:
        bus = Bus(f"redis://127.0.0.1:{port}/0", ClusterSettings(request=0.3, lease=0.9))
        with pytest.raises(ClusterError, match="no Redis answers"):
            await bus.start()
        await bus.close()


@asynchronous
async def test_something_that_is_no_redis():
    async with server(lambda words: b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        bus = Bus(f"redis://127.0.0.1:{port}/0", ClusterSettings(request=1.0))
        with pytest.raises(ClusterError):
            await bus.start()
        await bus.close()


@asynchronous
async def test_a_password_is_asked_for():
    async with server(lambda words: b"-NOAUTH Authentication required.\r\n") as port:
        bus = Bus(f"redis://127.0.0.1:{port}/0", ClusterSettings())
        with pytest.raises(ClusterError, match="--redis URL"):
            await bus.start()
        await bus.close()


def test_a_url_that_is_none():
    with pytest.raises(UsageError, match="not a Redis URL"):
        Bus("http://127.0.0.1:1", ClusterSettings())


@asynchronous
async def test_the_bell_wakes_everybody_and_scripts_survive_a_flush_of_the_script_cache(valkey, prefix):
    one, two = (Bus(valkey, ClusterSettings(prefix=prefix)) for _ in range(2))
    for bus in (one, two):
        await bus.start()
        await until(bus.bell.is_set)  # the listener is connected
        bus.bell.clear()
    await one.ring()
    await until(two.bell.is_set)
    keys = [one.key(k) for k in ("leader", "plan:g/m", "connected:g/m", "lost:g/m", "rev", "moves:g/m", "bell")]
    await one.command("HSET", one.key("leader"), "node", "x", "term", 3)
    for _ in range(2):
        assert await one.script("plan_drop", keys, ["x", 3]) == 1
        await one.command("SCRIPT", "FLUSH")
    assert await one.command("GET", one.key("rev")) == "2"
    await one.close()
    await two.close()
    with pytest.raises(BusDown):
        await Bus("unix:///nowhere/at/all", ClusterSettings()).command("PING")


@asynchronous
async def test_a_command_that_redis_refuses_is_an_error_with_its_words(valkey, prefix):
    bus = Bus(valkey, ClusterSettings(prefix=prefix))
    await bus.command("SET", bus.key("a"), "text")
    with pytest.raises(ClusterError, match="WRONGTYPE"):
        await bus.hash(bus.key("a"))
    await bus.close()
