"""The way to Redis: every command has a deadline, every script is one atomic step, a bell wakes those who wait.

Redis (or Valkey) holds the truth of the control plane in keys that only the scripts in `penstock/cluster/lua` change.
Publish/subscribe carries nothing: the bell says "look again", and everybody looks each `ClusterSettings.poll` seconds
anyway, so a lost bell costs time and nothing else. All keys share one hash tag, so they also live in one slot of a
Redis cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import redis.asyncio as redis_asyncio
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from penstock.cluster.cancellation import check_cancelled, end, times_cancelled
from penstock.cluster.service import Unavailable
from penstock.errors import ClusterError, UsageError
from penstock.settings import ClusterSettings

OLDEST = (6, 2)
"""The oldest Redis that is supported."""
_RETRY_FIRST, _RETRY_LAST = 0.1, 2.0

Argument: TypeAlias = str | bytes | int | float


class BusDown(Unavailable):
    """Redis did not answer before the deadline. Whether the command had an effect is unknown."""


@cache
def script_text(name: str) -> str:
    """The Lua script `name`."""
    text = _lua(name)
    return _lua("went_online") + text if "went_online(" in text else text


def _lua(name: str) -> str:
    return resources.files("penstock.cluster").joinpath("lua", f"{name}.lua").read_text("utf-8")


def place(url: str) -> str:
    """Where a Redis URL leads, for messages: host:port or a path, without user and password."""
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


class Bus:
    """A connection to one Redis. `start` connects and checks the version; `close` releases everything."""

    def __init__(self, url: str, settings: ClusterSettings) -> None:
        self.url, self.settings = url, settings
        self.place = place(url)
        self.bell = asyncio.Event()
        """Set when somebody rang (and after each reconnection); whoever waits clears it."""
        timeout = min(settings.request, max(0.25, settings.lease / 3))
        self.deadline = timeout
        """Seconds for one command: well inside a lease."""
        try:
            self._redis = redis_asyncio.Redis.from_url(
                url,
                protocol=2,
                decode_responses=True,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                retry=Retry(NoBackoff(), 0),
                health_check_interval=0,
            )
        except ValueError as error:
            raise UsageError(
                f"{url!r} is not a Redis URL: {error}",
                remedy="use redis://HOST:PORT/0, rediss://… for TLS, or unix:///PATH",
            ) from error
        self._scripts: dict[str, AsyncScript] = {}
        self._listener: asyncio.Task[None] | None = None
        self.closed = False

    def key(self, *parts: str) -> str:
        """The name of a key of this cluster."""
        return ":".join(("{" + self.settings.prefix + "}", *parts))

    async def start(self) -> None:
        """Connect, check the version, listen for the bell. Raises `ClusterError` when that cannot be."""
        try:
            info = await self.command("INFO", "server", deadline=self.settings.request)
        except BusDown as error:
            raise ClusterError(
                f"no Redis answers at {self.place}: {error.message}",
                remedy="start one there, or correct --redis URL; without --redis a server is embedded",
            ) from error
        check_version(info, self.place)
        self._listener = asyncio.create_task(self._listen(), name="bus-bell")

    async def close(self) -> None:
        """Release everything. May be called twice; every later command raises `BusDown`."""
        self.closed = True
        if self._listener is not None:
            await end(self._listener)
            self._listener = None
        with contextlib.suppress(RedisError, OSError):
            await self._redis.aclose()

    async def command(self, *arguments: Argument, deadline: float | None = None) -> Any:
        """Run one command. Raises `BusDown`; `ClusterError` when Redis refuses."""
        self._check_open()
        run: Callable[..., Awaitable[Any]] = self._redis.execute_command
        return await self._within(run(*arguments), deadline, str(arguments[0]))

    async def script(self, name: str, keys: Sequence[str], arguments: Sequence[Argument] = ()) -> Any:
        """Run the Lua script `name` in one atomic step. Raises `BusDown`; `ClusterError` when it fails."""
        self._check_open()
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = self._redis.register_script(script_text(name))
        return await self._within(script(keys=list(keys), args=list(arguments)), None, name)

    def _check_open(self) -> None:
        if self.closed:
            raise BusDown("this node is stopping")

    async def hash(self, key: str) -> dict[str, str]:
        """All fields of a hash; empty when there is none."""
        found: Mapping[str, str] = await self.command("HGETALL", key)
        return dict(found)

    async def ring(self) -> None:
        """Wake everybody. Best effort."""
        with contextlib.suppress(ClusterError):
            await self.command("PUBLISH", self.key("bell"), "1")

    async def _within(self, call: Any, deadline: float | None, what: str) -> Any:
        limit = self.deadline if deadline is None else deadline
        before = times_cancelled()
        try:
            async with asyncio.timeout(limit):
                result = await call
            check_cancelled(before)
            return result
        except AuthenticationError as error:
            raise ClusterError(
                f"Redis at {self.place} refuses the login: {error}", remedy="put user and password into --redis URL"
            ) from error
        except ResponseError as error:
            if str(error).startswith(("LOADING", "BUSY", "MASTERDOWN", "READONLY", "CLUSTERDOWN", "TRYAGAIN")):
                raise BusDown(f"Redis at {self.place} is not ready: {error}") from error
            if str(error).startswith(("NOAUTH", "NOPERM", "WRONGPASS")):
                raise ClusterError(
                    f"Redis at {self.place} refuses {what}: {error}",
                    remedy="put a user and password with full rights on the prefix into --redis URL",
                ) from error
            raise ClusterError(f"Redis at {self.place} refused {what}: {error}") from error
        except (RedisError, OSError) as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, TimeoutError):
                reason = f"no answer within {limit:g} s"
            raise BusDown(f"Redis at {self.place} does not answer ({what}: {reason})") from error

    async def _listen(self) -> None:
        """Turn publications into `bell`; connect again for ever."""
        pause = _RETRY_FIRST
        while True:
            pubsub = self._redis.pubsub()
            try:
                async with asyncio.timeout(self.deadline):
                    await pubsub.subscribe(self.key("bell"))
                self.bell.set()
                pause = _RETRY_FIRST
                await self._hear(pubsub)
            except (RedisError, OSError):
                pass
            finally:
                with contextlib.suppress(RedisError, OSError):
                    await pubsub.aclose()  # type: ignore[no-untyped-call]
            await asyncio.sleep(pause)
            pause = min(_RETRY_LAST, pause * 2)

    async def _hear(self, pubsub: PubSub) -> None:
        while True:
            message = await pubsub.get_message(timeout=self.settings.poll * 5)
            if message is None:
                async with asyncio.timeout(self.deadline):
                    await pubsub.ping()
            elif message["type"] == "message":
                self.bell.set()

    async def wait(self, seconds: float) -> None:
        """Until somebody rings, at most `seconds`. The bell is cleared."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.bell.wait()
        self.bell.clear()


def check_version(info: Mapping[str, Any], where: str) -> None:
    """Raise `ClusterError` unless `INFO server` tells of Redis >= 6.2 (or any Valkey)."""
    if "valkey_version" in info:
        return
    found = str(info.get("redis_version", ""))
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        raise ClusterError(
            f"the server at {where} is Redis {found or 'of an unknown version'}; 6.2 or later is needed",
            remedy="upgrade it, use Valkey, or leave --redis out: then a server is embedded",
        )
