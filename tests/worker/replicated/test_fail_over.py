"""Executors that are replicated lose nothing and repeat nothing when processes die: over real worker processes."""

import asyncio
import random
from pathlib import Path

import pytest
from tests.worker.replicated.flows import check, write, written
from tests.worker.replicated.leader import Leader, led

from penstock.exchange.replica.assignment import Mode
from penstock.worker.messages import Retired

BOTH = pytest.mark.parametrize("mode", [Mode.ACTIVE, Mode.PASSIVE])
ONE_EACH = {0: 1, 1: 1, 2: 1}
SINK_SAFE = {"0.0": (0, [1]), "1.0": (1, [0]), "2.0": (2, [])}
"""Source and first step have a standby; the sink, which shows records at once, is on a worker that lives."""


async def half_way(leader: Leader, tmp_path: Path, records: int) -> None:
    await leader.until(lambda: leader.protected("0.0", "1.0"), "protected")
    await leader.until(lambda: len(written(tmp_path)) > records, "half way")


@BOTH
def test_without_trouble(tmp_path: Path, mode: Mode) -> None:
    async def main() -> None:
        plan = {"0.0": (0, [1]), "1.0": (1, [0]), "2.0": (0, [1])}
        async with led(write(tmp_path, 3000, 6000), ONE_EACH, plan, mode) as leader:
            await leader.until(leader.protected, "protected")
            await leader.until(leader.finished, "finished")
            assert leader.alarms() == []

    asyncio.run(main())
    check(tmp_path, 3000)


@BOTH
@pytest.mark.parametrize("victim", ["0.0", "1.0"])
def test_primary_killed(tmp_path: Path, mode: Mode, victim: str) -> None:
    async def main() -> None:
        async with led(write(tmp_path, 6000, 3000), ONE_EACH, SINK_SAFE, mode) as leader:
            await half_way(leader, tmp_path, 1500)
            leader.kill(leader.worker_of(victim))
            await leader.until(leader.pauses, "promoted")
            await leader.until(leader.finished, "finished")
            assert leader.alarms() == []

    asyncio.run(main())
    check(tmp_path, 6000)


@BOTH
def test_primary_paused_and_come_back(tmp_path: Path, mode: Mode) -> None:
    """It believes itself to be primary for a while: nobody listens to it, and then it stops by itself."""

    async def main() -> None:
        plan = {"0.0": (0, []), "1.0": (1, [2]), "2.0": (0, [])}
        async with led(write(tmp_path, 6000, 3000), ONE_EACH, plan, mode) as leader:
            await leader.until(lambda: leader.protected("1.0"), "protected")
            await leader.until(lambda: len(written(tmp_path)) > 1500, "half way")
            leader.pause(1)
            await asyncio.sleep(0.5)
            await leader.promote("1.0")
            await leader.until(leader.pauses, "promoted")
            before = len(written(tmp_path))
            await leader.until(lambda: len(written(tmp_path)) > before + 500, "going on")
            leader.resume(1)
            await leader.until(lambda: leader.count(Retired) == 1, "the old primary retires")
            await leader.until(leader.finished, "finished")
            assert leader.alarms() == []

    asyncio.run(main())
    check(tmp_path, 6000)


@BOTH
def test_standby_killed_and_replaced_then_primary_killed(tmp_path: Path, mode: Mode) -> None:
    async def main() -> None:
        plan = {"0.0": (0, []), "1.0": (1, [2]), "2.0": (0, [])}
        async with led(write(tmp_path, 9000, 3000), ONE_EACH, plan, mode) as leader:
            await leader.until(lambda: leader.protected("1.0"), "protected")
            await leader.until(lambda: len(written(tmp_path)) > 1000, "some")
            leader.kill(2)
            await leader.until(lambda: not leader.alive[2], "standby gone")
            assert not leader.protected("1.0")
            await leader.add_standby("1.0", mode)
            await leader.until(lambda: leader.protected("1.0"), "protected again")
            leader.kill(1)
            await leader.until(leader.pauses, "promoted")
            await leader.add_standby("1.0", mode)
            await leader.until(lambda: leader.protected("1.0"), "protected once more")
            leader.kill(leader.worker_of("1.0"))
            await leader.until(lambda: len(leader.pauses()) == 2, "promoted again")
            await leader.until(leader.finished, "finished")
            assert leader.alarms() == []

    asyncio.run(main())
    check(tmp_path, 9000)


@BOTH
def test_moved_while_records_flow(tmp_path: Path, mode: Mode) -> None:
    async def main() -> None:
        plan = {"0.0": (0, []), "1.0": (1, []), "2.0": (0, [])}
        async with led(write(tmp_path, 6000, 3000), ONE_EACH, plan, mode) as leader:
            await leader.until(lambda: len(written(tmp_path)) > 500, "some")
            for place in range(2):
                standby = await leader.add_standby("1.0", Mode.ACTIVE)
                await leader.hand_over("1.0", standby)
                await leader.until(lambda: len(leader.pauses()) == place + 1, "promoted")  # noqa: B023
            await leader.until(lambda: leader.count(Retired) == 2, "retired")
            await leader.until(leader.finished, "finished")
            assert max(leader.pauses()) < 5
            assert leader.alarms() == []

    asyncio.run(main())
    check(tmp_path, 6000)


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_many_executors_under_random_kills(tmp_path: Path, mode: Mode, seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        plan = {
            "0.0": (0, [1]), "1.0": (1, [2]), "1.1": (2, [0]), "1.2": (0, [1]), "2.0": (3, []),
        }  # fmt: skip
        names = ["0.0", "1.0", "1.1", "1.2"]
        async with led(write(tmp_path, 12_000, 3000), {0: 1, 1: 3, 2: 1}, plan, mode) as leader:
            for _ in range(3):
                await leader.until(lambda: leader.protected(*names), "protected")
                wait = len(written(tmp_path)) + rng.randrange(200, 1200)
                await leader.until(lambda: len(written(tmp_path)) > wait or leader.finished(), "more")  # noqa: B023
                living = [w for w in range(len(leader.workers)) if leader.alive[w] and w != 3]
                victim = rng.choice(living)
                leader.kill(victim)
                await leader.until(lambda: not leader.alive[victim], "dead")  # noqa: B023
                for name in names:
                    if len(leader.executors[name].seats) < 2:
                        await leader.add_standby(name, mode)
            await leader.until(leader.finished, "finished")
            assert leader.alarms() == []

    asyncio.run(main())
    check(tmp_path, 12_000)
