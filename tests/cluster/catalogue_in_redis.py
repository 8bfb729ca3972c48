"""For tests of what keeps the catalogue in Redis, without agents."""

from __future__ import annotations

import asyncio
import contextlib
import functools

from penstock.cluster.bus import Bus
from penstock.settings import ClusterSettings

_EMPTY = "for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do redis.call('DEL', key) end return 1"


def settings(prefix, **changes):
    """Short leases, so that tests are short."""
    return ClusterSettings(**{"prefix": prefix, "lease": 1.5, "leader_lease": 1.5, "poll": 0.2, **changes})


def asynchronous(test):
    """Run a coroutine function as a test; tasks that it leaves running are a failure."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        async def main():
            await test(*args, **kwargs)
            await asyncio.sleep(0)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks left running: {left}"

        asyncio.run(main())

    return run


@contextlib.asynccontextmanager
async def connected(url, prefix, **changes):
    """A bus."""
    bus = Bus(url, settings(prefix, **changes))
    await bus.start()
    try:
        yield bus
    finally:
        await bus.close()


async def empty(bus):
    """What FLUSHALL does, for the keys of one cluster."""
    await bus.command("EVAL", _EMPTY, 0, bus.key(""))
