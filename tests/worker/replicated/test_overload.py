"""More comes in than can be done: what is kept stays bounded, at the primary, its standby and its producers."""

import asyncio
import time
from pathlib import Path

import pytest
from tests.worker.replicated.flows import write
from tests.worker.replicated.leader import Leader, led

from penstock.exchange.replica.assignment import Mode
from penstock.settings import RunSettings

SLOW = """
import time

def slowly(n):
    until = time.perf_counter() + 0.0002
    while time.perf_counter() < until:
        pass
    return n

flow = ps.Flow("tried")
(
    flow.source("n", ps.sequence())
    .map("padded", lambda n: [n, "x" * 200])
    .key_by("key", lambda r: r[0] % 50)
    .map("slow", slowly)
    .key_by("again", lambda r: r[0] % 7)
    .fold("count", 0, lambda s, r: (s + 1, None))
    .sink("out", ps.null())
)
"""
CREDIT = 256 * 1024


def kept(leader: Leader) -> int:
    """Bytes that all replicas keep now."""
    return sum(e.kept_bytes for metrics in leader.metrics.values() for e in metrics.executors)


@pytest.mark.parametrize("mode", [Mode.ACTIVE, Mode.PASSIVE])
def test_what_is_kept_is_bounded(tmp_path: Path, mode: Mode) -> None:
    async def main() -> None:
        target = write(tmp_path, 0, 0, body=SLOW.replace("{", "{{").replace("}", "}}"))
        plan = {"0.0": (0, [1]), "1.0": (1, [0])}
        settings = RunSettings(metrics_interval=0.1, credit_bytes=CREDIT)
        async with led(target, {0: 1, 1: 1}, plan, mode, settings=settings) as leader:
            await leader.until(leader.protected, "protected")
            until, most, first = time.monotonic() + 8.0, 0, 0
            while time.monotonic() < until:
                await asyncio.sleep(0.1)
                most = max(most, kept(leader))
                if not first and time.monotonic() > until - 6.0:
                    first = sum(metrics.rss for metrics in leader.metrics.values())
            last = sum(metrics.rss for metrics in leader.metrics.values())
            assert most < 60 * CREDIT, "a few batches and a checkpoint interval for each replica"
            assert last < first + 48 * 2**20, "memory does not grow while it goes on"
            assert leader.alarms() == []

    asyncio.run(main())
