"""Key groups go from one executor to another while records flow: nothing is lost, repeated or out of order."""

import asyncio
from pathlib import Path

import pytest
from tests.worker.replicated.flows import check, write, written
from tests.worker.replicated.splits import Splitter, splitting

from penstock.exchange.replica.assignment import Mode
from penstock.exchange.split.routing import Phase

BOTH = pytest.mark.parametrize("mode", [Mode.ACTIVE, Mode.PASSIVE])
ONE_EACH = {0: 1, 1: 1, 2: 1}
PLAN = {"0.0": (0, [1]), "1.0": (2, [3]), "2.0": (4, [])}
HALF = range(0, 256, 2)


async def half_way(leader: Splitter, tmp_path: Path, records: int) -> None:
    await leader.until(lambda: leader.protected("0.0", "1.0"), "protected")
    await leader.until(lambda: len(written(tmp_path)) > records, "half way")


@BOTH
def test_split(tmp_path: Path, mode: Mode) -> None:
    async def main() -> None:
        async with splitting(write(tmp_path, 12000, 1200), ONE_EACH, PLAN, mode) as leader:
            await half_way(leader, tmp_path, 1500)
            await leader.split(1, 0, HALF)
            await leader.until(lambda: leader.over(1), "split")
            assert leader.history == [Phase.PREPARING, Phase.SWITCHING, Phase.COMMITTED, None]
            before = len(written(tmp_path))
            await leader.until(lambda: len(written(tmp_path)) > before + 500, "records after it")
            await leader.until(leader.finished, "finished")
            assert leader.alarms() == []
            keys = {
                str(e.executor): e.keys for m in leader.metrics.values() for e in m.executors if e.role == "primary"
            }
            assert keys["1.0"] + keys["1.1"] == 50
            assert keys["1.1"] > 10

    asyncio.run(main())
    check(tmp_path, 12000)
