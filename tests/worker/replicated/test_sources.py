"""Sources of replicated executors: more executors than partitions."""

import asyncio
from pathlib import Path

from tests.worker.replicated.flows import write, written
from tests.worker.replicated.leader import led

from penstock.exchange.replica.assignment import Mode

SHARED = """
flow = ps.Flow("tried")
(
    flow.source("n", ps.sequence({n}, rate={rate}, shards=2))
    .key_by("key", lambda n: n % 10)
    .fold("number", 0, lambda s, n: (s + 1, [n % 10, s + 1, n]))
    .map("plain", lambda r: list(r.value))
    .sink("out", Append())
)
"""


def test_an_executor_without_a_partition_ends_too(tmp_path: Path) -> None:
    async def main() -> None:
        plan: dict[str, tuple[int, list[int]]] = {f"0.{index}": (0, [1]) for index in range(3)}
        plan |= {"1.0": (2, [])}
        target = write(tmp_path, 3000, 1500, body=SHARED)
        async with led(target, {0: 3, 1: 1}, plan, Mode.ACTIVE) as leader:
            await leader.until(lambda: leader.protected("0.0", "0.1", "0.2"), "protected")
            await leader.until(lambda: len(written(tmp_path)) > 500, "some")
            leader.kill(0)
            await leader.until(leader.finished, "finished")
            assert leader.alarms() == []

    asyncio.run(main())
    assert sorted(record[2] for record in written(tmp_path)) == list(range(3000))
