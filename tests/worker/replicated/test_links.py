"""Links between workers that are cut, slow, reset, or flip bits: replicated executors lose nothing, repeat nothing."""

import asyncio
import random
from pathlib import Path

import pytest
from tests.worker.replicated.flows import check, write, written
from tests.worker.replicated.leader import Leader, led

from penstock.exchange.replica.assignment import Mode

PLAN = {"0.0": (0, [1]), "1.0": (1, [0]), "2.0": (2, [])}
BOTH = pytest.mark.parametrize("mode", [Mode.ACTIVE, Mode.PASSIVE])


async def disturb(leader: Leader, fault: str, rng: random.Random) -> None:
    """One fault on the way to one of the workers."""
    assert leader.links is not None
    link = rng.choice(leader.links)
    match fault:
        case "cut":
            link.open = False
            await asyncio.sleep(0.7)
            link.open = True
        case "slow":
            link.delay = 0.05
            await asyncio.sleep(1.0)
            link.delay = 0.0
        case "reset":
            link.reset()
        case "flip":
            link.flip, before = 0.2, link.flipped
            async with asyncio.timeout(10):
                while link.flipped == before:
                    await asyncio.sleep(0.01)
            link.flip = 0.0


@BOTH
@pytest.mark.parametrize("fault", ["cut", "slow", "reset", "flip"])
def test_links_in_trouble(tmp_path: Path, mode: Mode, fault: str) -> None:
    async def main() -> None:
        rng = random.Random(f"{mode} {fault}")
        target = write(tmp_path, 8000, 2000)
        async with led(target, {0: 1, 1: 1, 2: 1}, PLAN, mode, links=True) as leader:
            await leader.until(lambda: leader.protected("0.0", "1.0"), "protected")
            for _ in range(4):
                await disturb(leader, fault, rng)
                await asyncio.sleep(0.1)
            victim = "1.0" if fault in ("cut", "reset") else "0.0"
            await leader.until(lambda: leader.protected("0.0", "1.0"), "protected still")
            leader.kill(leader.worker_of(victim))
            await leader.until(leader.finished, "finished", 60)
            assert leader.alarms() == []

    asyncio.run(main())
    assert len(written(tmp_path)) == 8000
    check(tmp_path, 8000)
