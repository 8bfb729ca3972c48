"""An active standby computes the same as its primary, also what depends on time, chance and the outside."""

import asyncio
from pathlib import Path

import pytest
from tests.worker.replicated.flows import write, written
from tests.worker.replicated.leader import led

from penstock.exchange.replica.assignment import Mode
from penstock.settings import Replication
from penstock.worker.messages import Push

EVERY = Replication(digest_every=1)

CHANCE = """
flow = ps.Flow("tried")
(
    flow.source("n", ps.sequence({n}, rate={rate}))
    .map("draw", lambda n: [n, ps.random().random(), ps.now().timestamp()])
    .key_by("key", lambda r: r[0] % 10)
    .fold("sum", [0, 0.0], lambda s, r: ([s[0] + 1, s[1] + r[1]], [r[0], s[0] + 1, s[1] + r[1], ps.random().random()]))
    .map("plain", lambda r: list(r.value))
    .sink("out", Append())
)
"""

WINDOWS = """
flow = ps.Flow("tried")
(
    flow.source("n", ps.sequence({n}, rate={rate}))
    .map("record", lambda n: {{"ts": n * 10, "v": n, "k": n % 7}})
    .key_by("key", "k")
    .window(ps.sliding("1s", "250ms"), on="ts")
    .aggregate("stats", n=ps.count(), mean=ps.mean("v"), q=ps.quantile("v", 0.5), d=ps.distinct_count("v"))
    .key_by("again", "key")
    .fold("seen", 0, lambda s, r: (s + 1, [r["key"], s + 1, r["n"]]))
    .map("plain", lambda r: list(r.value))
    .sink("out", Append())
)
"""

CALLS = """
import asyncio, random

async def ask(record):
    await asyncio.sleep(random.random() / 1000)
    if record % 97 == 0:
        raise ValueError("no")
    return [record, random.random()]

flow = ps.Flow("tried", on_error="skip")
(
    flow.source("n", ps.sequence({n}, rate={rate}))
    .enrich("ask", ask, concurrency=20)
    .key_by("key", lambda r: r[0] % 10)
    .fold("sum", 0, lambda s, r: (s + 1, [r[0], s + 1]))
    .map("plain", lambda r: list(r.value))
    .sink("out", Append())
)
"""

WILD = """
import random

flow = ps.Flow("tried")
(
    flow.source("n", ps.sequence({n}, rate={rate}))
    .key_by("key", lambda n: n % 10)
    .fold("wild", 0, lambda s, n: (s + 1, [n, random.random()]))
    .map("plain", lambda r: list(r.value))
    .key_by("again", lambda r: 0)
    .fold("seen", 0, lambda s, r: (s + 1, r))
    .map("values", lambda r: r.value)
    .sink("out", Append())
)
"""


@pytest.mark.parametrize(
    ("body", "stages"), [(CHANCE, 2), (WINDOWS, 3), (CALLS, 2)], ids=["chance", "windows", "calls"]
)
def test_equal_until_the_primary_is_killed_and_after(tmp_path: Path, body: str, stages: int) -> None:
    async def main() -> None:
        target = write(tmp_path, 4000, 2000, body=body)
        counts = dict.fromkeys(range(stages), 1)
        plan: dict[str, tuple[int, list[int]]] = {f"{stage}.0": (0, [1]) for stage in counts}
        plan[f"{stages - 1}.0"] = (2, [])
        async with led(target, counts, plan, Mode.ACTIVE, replication=EVERY) as leader:
            protectable = [name for name, (_, others) in plan.items() if others]
            await leader.until(lambda: leader.protected(*protectable), "protected")
            await leader.until(lambda: len(written(tmp_path)) > 50, "some")
            leader.kill(0)
            await leader.until(leader.finished, "finished")
            assert leader.alarms() == []

    asyncio.run(main())
    seen = written(tmp_path)
    by_key: dict[object, list[int]] = {}
    for record in seen:
        by_key.setdefault(record[0] % 10, []).append(record[1])
    for numbers in by_key.values():
        assert numbers == list(range(1, len(numbers) + 1))
    assert len(seen) > 300


def test_a_step_that_is_not_deterministic_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        target = write(tmp_path, 4000, 1000, body=WILD)
        plan = {"0.0": (0, []), "1.0": (0, [1]), "2.0": (0, [])}
        async with led(target, {0: 1, 1: 1, 2: 1}, plan, Mode.ACTIVE, replication=EVERY) as leader:
            await leader.until(lambda: any("computed other output" in text for text in leader.alarms()), "an alarm")
            assert any("wild" in text for text in leader.alarms())

    asyncio.run(main())


def test_pushed_records_are_answered_when_they_are_protected(tmp_path: Path) -> None:
    body = """
flow = ps.Flow("tried")
flow.source("in", ps.push()).key_by("k", "k").fold("n", 0, lambda s, r: (s + 1, [r["k"], s + 1, r["i"]])).map(
    "plain", lambda r: list(r.value)).sink("out", Append())
"""

    async def main() -> None:
        target = write(tmp_path, 0, 0, body=body.replace("{", "{{").replace("}", "}}"))
        plan = {"0.0": (0, [1]), "1.0": (2, [])}
        async with led(target, {0: 1, 1: 1}, plan, Mode.PASSIVE) as leader:
            await leader.until(lambda: leader.protected("0.0"), "protected")

            async def push(seq: int) -> None:
                records = [{"k": seq % 3, "i": seq}]
                while True:
                    worker = leader.worker_of("0.0")
                    try:
                        async with asyncio.timeout(1.0):
                            reply = await leader.ask(worker, Push(0, "default/tried", "in", records, "client", seq))
                    except (TimeoutError, OSError, Exception):
                        await asyncio.sleep(0.02)
                        continue
                    if reply.ok:
                        return

            for seq in range(300):
                if seq == 150:
                    leader.kill(0)
                await push(seq)
            await leader.until(lambda: len(written(tmp_path)) >= 300, "all")

    asyncio.run(main())
    assert sorted(record[2] for record in written(tmp_path)) == list(range(300))
