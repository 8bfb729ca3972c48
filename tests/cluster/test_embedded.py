from __future__ import annotations

import asyncio
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.cluster.nodes import asynchronous, until

from penstock.cluster.bus import Bus
from penstock.cluster.embedded import EmbeddedValkey
from penstock.errors import ClusterError
from penstock.settings import ClusterSettings

PARENT = """
import asyncio
from penstock.cluster.embedded import EmbeddedValkey

async def main():
    embedded = EmbeddedValkey()
    await embedded.start()
    print(embedded.url, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@asynchronous
async def test_it_serves_privately_and_leaves_nothing():
    async with EmbeddedValkey() as embedded:
        path = Path(embedded.url.removeprefix("unix://"))
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        bus = Bus(embedded.url, ClusterSettings())
        await bus.start()
        info = await bus.command("INFO", "server")
        assert info["tcp_port"] == 0
        await bus.close()
    assert not path.parent.exists()
    with pytest.raises(ClusterError, match="not been started"):
        embedded.url  # noqa: B018


@asynchronous
async def test_cancelled_while_it_starts_it_leaves_nothing():
    for delay in (0.0, 0.05, 0.15):
        embedded = EmbeddedValkey()
        start = asyncio.create_task(embedded.start())
        await asyncio.sleep(delay)
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        await embedded.stop()


@asynchronous
async def test_a_directory_with_too_long_a_name(tmp_path):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    with pytest.raises(ClusterError, match="too long a name"):
        await EmbeddedValkey(deep).start()
    assert list(deep.iterdir()) == []


@pytest.mark.faults
@pytest.mark.parametrize("victim", ["parent", "guard"])
def test_it_dies_with_its_parent_and_with_its_guard(victim):
    if victim == "guard" and sys.platform != "linux":
        pytest.skip("only Linux has a death signal")
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        assert re.match(r"unix:///.*valkey\.sock$", url)
        (guard,) = psutil.Process(parent.pid).children()
        (server,) = guard.children()
        os.kill(parent.pid if victim == "parent" else guard.pid, signal.SIGKILL)
        if victim == "parent":
            parent.wait(10)
        asyncio.run(until(lambda: not alive(server)))
        if victim == "parent":
            asyncio.run(until(lambda: not alive(guard)))
            assert not Path(url.removeprefix("unix://")).parent.exists()
    finally:
        parent.kill()
        parent.wait(10)
        parent.stdout.close()


def alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
