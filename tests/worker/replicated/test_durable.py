"""Durable checkpoints beneath replicas: what transactional sinks show is exact whoever dies."""

import asyncio
from pathlib import Path

import pytest
from tests.worker.replicated.flows import check, write, written
from tests.worker.replicated.leader import Leader, led

from penstock.exchange.replica.assignment import Mode

BOTH = pytest.mark.parametrize("mode", [Mode.ACTIVE, Mode.PASSIVE])
ONE_EACH = {0: 1, 1: 1, 2: 1}
PLAN = {"0.0": (0, [1]), "1.0": (1, [0]), "2.0": (0, [1])}


def target(tmp_path: Path, n: int = 6000, rate: int = 3000) -> str:
    return write(tmp_path, n, rate, sink=f"ps.ndjson({str(tmp_path / 'out') + '/'!r})")


async def checkpoints(leader: Leader, first: int, stop: asyncio.Event) -> int:
    """Take one after the other, as a leader does; one that a fail-over interrupts is given up."""
    number = first
    while not stop.is_set():
        before = {name: e.record.primary for name, e in leader.executors.items()}
        try:
            await leader.durable(number, seconds=2, unless=lambda before=before: before != primaries(leader))  # type: ignore[misc]
        except AssertionError:
            if before == primaries(leader):
                raise
        number += 1
        await asyncio.sleep(0.1)
    return number


def primaries(leader: Leader) -> dict[str, str]:
    return {name: executor.record.primary for name, executor in leader.executors.items()}


@BOTH
@pytest.mark.parametrize("victim", [0, 1])
def test_sinks_are_exact_when_a_worker_is_killed(tmp_path: Path, mode: Mode, victim: int) -> None:
    async def main() -> None:
        url = str(tmp_path / "checkpoints")
        async with led(target(tmp_path), ONE_EACH, PLAN, mode, checkpoint_url=url) as leader:
            stop = asyncio.Event()
            taking = asyncio.create_task(checkpoints(leader, 1, stop))
            await leader.until(leader.protected, "protected")
            await leader.until(lambda: len(written(tmp_path)) > 1000 or taking.done(), "some")
            leader.kill(victim)
            await leader.until(lambda: leader.finished() or taking.done(), "finished")
            stop.set()
            last = await taking
            await leader.durable(last)
            await leader.until(lambda: len(written(tmp_path)) >= 6000, "all shown")
            assert leader.alarms() == []

    asyncio.run(main())
    check(tmp_path, 6000)


@BOTH
def test_everything_killed_and_restored(tmp_path: Path, mode: Mode) -> None:
    url = str(tmp_path / "checkpoints")
    flow = target(tmp_path)

    async def begin() -> int:
        async with led(flow, ONE_EACH, PLAN, mode, checkpoint_url=url) as leader:
            leader.automatic = False
            number = 0
            while len(written(tmp_path)) < 1500:
                number += 1
                await leader.durable(number)
                await asyncio.sleep(0.1)
            leader.kill(0)
            leader.kill(1)
            return number

    async def go_on(restore: int) -> None:
        async with led(flow, ONE_EACH, PLAN, mode, checkpoint_url=url, restore=restore) as leader:
            await leader.until(leader.finished, "finished")
            await leader.durable(restore + 1)
            await leader.until(lambda: len(written(tmp_path)) >= 6000, "all shown")

    restore = asyncio.run(begin())
    assert 0 < len(written(tmp_path)) < 6000
    asyncio.run(go_on(restore))
    check(tmp_path, 6000)
