"""Key groups go from one executor to another while records flow: nothing is lost, repeated or out of order."""

import asyncio
import json
from collections import defaultdict
from pathlib import Path

import pytest
from tests.worker.replicated.flows import APPEND, lines, write, written
from tests.worker.replicated.splits import Splitter, splitting

from penstock.exchange.replica.assignment import Mode
from penstock.exchange.split.routing import Phase, Routing

BOTH = pytest.mark.parametrize("mode", [Mode.ACTIVE, Mode.PASSIVE])
ONE_EACH = {0: 1, 1: 1, 2: 1}
PLAN = {"0.0": (0, [1]), "1.0": (2, [3]), "2.0": (4, [])}
"""The sink, which shows records at once, is on a worker that lives."""
ENDLESS = 10_000_000
HALF = range(0, 256, 2)
WHOLE = [Phase.PREPARING, Phase.SWITCHING, Phase.COMMITTED, None]


async def half_way(leader: Splitter, tmp_path: Path, records: int) -> None:
    await leader.until(lambda: leader.protected("0.0", "1.0"), "protected")
    await leader.until(lambda: len(written(tmp_path)) > records, "half way")


async def more(leader: Splitter, tmp_path: Path) -> None:
    """All goes on; what was lost or came twice would show."""
    before = len(written(tmp_path))
    await leader.until(lambda: len(written(tmp_path)) > before + 1000, "records after it")


def check_so_far(tmp_path: Path) -> None:
    """Every key's records are numbered 1, 2, 3 … by both steps, in the order of the source."""
    by_key: dict[int, list[list[int]]] = defaultdict(list)
    for key, first, value, second in written(tmp_path):
        by_key[key].append([first, value, second])
    assert len(by_key) == 50
    for key, found in by_key.items():
        assert found == [[at + 1, key + 50 * at, at + 1] for at in range(len(found))], f"key {key}"


def keys(leader: Splitter) -> dict[str, int]:
    return {str(e.executor): e.keys for m in leader.metrics.values() for e in m.executors if e.role == "primary"}


@BOTH
def test_split_then_merged(tmp_path: Path, mode: Mode) -> None:
    async def main() -> None:
        async with splitting(write(tmp_path, ENDLESS, 1000), ONE_EACH, PLAN, mode) as leader:
            await half_way(leader, tmp_path, 1000)
            name = await leader.split(1, 0, HALF)
            await leader.until(lambda: leader.over(1), "split")
            assert leader.history == WHOLE
            before = len(written(tmp_path))
            await leader.until(lambda: len(written(tmp_path)) > before + 500, "records after it")
            await leader.until(lambda: keys(leader)["1.0"] + keys(leader)[name] == 50, "keys are divided")
            assert keys(leader)[name] > 10
            await leader.merge(1, 0, 1)
            await leader.until(lambda: leader.over(1), "merged")
            assert leader.history == WHOLE * 2
            before = len(written(tmp_path))
            await leader.until(lambda: len(written(tmp_path)) > before + 500, "records after that")
            await leader.until(lambda: keys(leader)[name] == 50, "keys are together again")
            await more(leader, tmp_path)
            assert leader.alarms() == []

    asyncio.run(main())
    check_so_far(tmp_path)


@BOTH
@pytest.mark.parametrize("phase", [Phase.SWITCHING, Phase.COMMITTED, None])
@pytest.mark.parametrize("victim", ["0.0", "1.0", "1.1"])
def test_primary_killed_when_a_step_is_done(tmp_path: Path, mode: Mode, victim: str, phase: Phase | None) -> None:
    """Everybody has done a step and said so; before the leader goes on, one of them is killed."""

    async def main() -> None:
        async with splitting(write(tmp_path, ENDLESS, 1000), ONE_EACH, PLAN, mode) as leader:
            await half_way(leader, tmp_path, 500)
            leader.hold = lambda record: record.phase is phase
            await leader.split(1, 0, HALF)
            await leader.until(lambda: 1 in leader.waiting, "the step is done")
            leader.kill(leader.worker_of(victim))
            await leader.until(leader.pauses, "promoted")
            await leader.go_on(1)
            await leader.until(lambda: leader.over(1), "split")
            assert leader.history == WHOLE
            await more(leader, tmp_path)
            assert leader.alarms() == []

    asyncio.run(main())
    check_so_far(tmp_path)


@BOTH
@pytest.mark.parametrize("phase", [Phase.SWITCHING, Phase.COMMITTED])
@pytest.mark.parametrize("victim", ["0.0", "1.0", "1.1"])
def test_primary_killed_when_a_step_begins(tmp_path: Path, mode: Mode, victim: str, phase: Phase | None) -> None:
    """The leader has just said how it goes on."""

    async def main() -> None:
        async with splitting(write(tmp_path, ENDLESS, 1000), ONE_EACH, PLAN, mode) as leader:
            await half_way(leader, tmp_path, 500)

            def strike(record: Routing) -> None:
                if record.phase is phase:
                    leader.kill(leader.worker_of(victim))

            leader.on_write = strike
            await leader.split(1, 0, HALF)
            await leader.until(lambda: leader.over(1), "split")
            await leader.until(leader.pauses, "promoted")
            assert leader.history == WHOLE
            await more(leader, tmp_path)
            assert leader.alarms() == []

    asyncio.run(main())
    check_so_far(tmp_path)


@pytest.mark.parametrize("phase", [Phase.SWITCHING, Phase.COMMITTED])
def test_a_newcomer_without_a_standby_is_lost(tmp_path: Path, phase: Phase) -> None:
    """The giver keeps what it had; another split works afterwards."""

    async def main() -> None:
        async with splitting(write(tmp_path, ENDLESS, 1000), ONE_EACH, PLAN, Mode.ACTIVE) as leader:
            await half_way(leader, tmp_path, 500)
            leader.hold = lambda record: record.phase is phase
            lost = await leader.split(1, 0, HALF, standby=False)
            await leader.until(lambda: 1 in leader.waiting, "the step is done")
            worker = leader.worker_of(lost)
            leader.kill(worker)
            await leader.until(lambda: not leader.alive[worker], "gone")
            leader.hold = lambda record: False
            await leader.give_up(1)
            await leader.until(lambda: leader.over(1), "given up")
            assert leader.history[-2:] == [Phase.ABANDONED, None]
            before = len(written(tmp_path))
            await leader.until(lambda: len(written(tmp_path)) > before + 300, "records after it")
            assert keys(leader)["1.0"] == 50
            await leader.split(1, 0, HALF)
            await leader.until(lambda: leader.over(1), "split")
            assert leader.history[-4:] == WHOLE
            await more(leader, tmp_path)
            assert leader.alarms() == []

    asyncio.run(main())
    check_so_far(tmp_path)


WINDOWED = """
flow = ps.Flow("tried")
(
    flow.source("n", ps.sequence({n}, rate={rate}))
    .key_by("key", lambda n: n % 50)
    .window(ps.tumbling(0.5), on=lambda n: n)
    .aggregate("counted", count=ps.count(), sum=ps.sum(lambda n: n))
    .sink("out", {sink})
)
"""


@BOTH
def test_windows_come_once_and_complete(tmp_path: Path, mode: Mode) -> None:
    async def main() -> None:
        target = write(tmp_path, ENDLESS, 1000, APPEND, WINDOWED)
        plan = {"0.0": (0, [1]), "1.0": (2, [])}
        async with splitting(target, {0: 1, 1: 1}, plan, mode) as leader:
            await leader.until(lambda: leader.protected("0.0"), "protected")
            await leader.until(lambda: len(written(tmp_path)) > 100, "under way")
            await leader.split(1, 0, HALF)
            await leader.until(lambda: leader.over(1), "split")
            await leader.until(
                lambda: all(len(lines(path)) > 300 for path in tmp_path.glob("out-*")), "both close windows"
            )
            assert leader.alarms() == []
            assert (tmp_path / "out-1").exists()

    asyncio.run(main())
    starts: dict[int, list[int]] = defaultdict(list)
    for path in tmp_path.glob("out-*"):
        for record in map(json.loads, lines(path)):
            assert record["count"] == 10
            first = record["start"] + record["key"]
            assert record["sum"] == sum(range(first, first + 500, 50))
            starts[record["key"]].append(record["start"])
    assert len(starts) == 50
    for key, found in starts.items():
        assert sorted(found) == list(range(0, 500 * len(found), 500)), f"key {key}"
