"""Another version takes over while records flow: keyed state goes through `migrate`, nothing is lost or repeated."""

import asyncio
from collections import defaultdict
from pathlib import Path

import pytest
from tests.worker.replicated.flows import NUMBERED, write, written
from tests.worker.replicated.leader import led

from penstock.exchange.replica.assignment import Mode

SECOND = """
def migrate(from_version, state):
    assert from_version == "1"
    return {{step: ({{key: {{"n": n}} for key, n in keys.items()}} if step == "number" else keys)
            for step, keys in state.items()}}

def number(state, value):
    state = {{"n": state["n"] + 1}}
    return state, [value % 50, state["n"], value + 1_000_000]
""" + NUMBERED.replace('.fold("number", 0, number)', '.fold("number", {{"n": 0}}, number)')
BROKEN = SECOND.replace('state = {{"n": state["n"] + 1}}', 'state = {{"n": state["m"] + 1}}')


def test_state_is_migrated_and_counts_go_on(tmp_path: Path) -> None:
    async def main() -> None:
        plan = {"0.0": (0, []), "1.0": (1, []), "2.0": (0, [])}
        target = write(tmp_path, 9000, 1500)
        later = write(tmp_path, 9000, 1500, body=SECOND, name="later")
        async with led(target, {0: 1, 1: 1, 2: 1}, plan, Mode.ACTIVE) as leader:
            await leader.until(lambda: len(written(tmp_path)) > 1000, "some")
            standby = await leader.add_standby("1.0", Mode.ACTIVE, foreign=True, target=later, migrate_from="1")
            await leader.hand_over("1.0", standby)
            await leader.until(leader.finished, "finished")
            assert leader.alarms() == []

    asyncio.run(main())
    by_key: dict[int, list[list[int]]] = defaultdict(list)
    for key, first, value, second in written(tmp_path):
        by_key[key].append([first, value, second])
    switched = set()
    for key in range(50):
        numbers = [first for first, _, _ in by_key[key]]
        assert numbers == list(range(1, 181)) == [second for _, _, second in by_key[key]]
        values = [value for _, value, _ in by_key[key]]
        later_ones = [value for value in values if value >= 1_000_000]
        assert [value % 1_000_000 for value in values] == list(range(key, 9000, 50))
        assert values[len(values) - len(later_ones) :] == later_ones, "the new version follows the old one"
        switched.add(len(later_ones))
    assert min(switched) > 0
    assert max(switched) < 180


BODIES = {"step": BROKEN, "migrate": SECOND.replace("return {{step", "return 5 or {{step")}


@pytest.mark.parametrize(
    "body", [BROKEN, SECOND.replace("return {{step", "return 5 or {{step")], ids=["step", "migrate"]
)
def test_a_version_that_fails_in_the_shadow_changes_nothing(tmp_path: Path, body: str) -> None:
    async def main() -> None:
        plan = {"0.0": (0, []), "1.0": (1, []), "2.0": (0, [])}
        target = write(tmp_path, 9000, 1500)
        later = write(tmp_path, 9000, 1500, body=body, name="later")
        async with led(target, {0: 1, 1: 1, 2: 1}, plan, Mode.ACTIVE) as leader:
            leader.expected_failures = True
            await leader.until(lambda: len(written(tmp_path)) > 1000, "some")
            standby = await leader.add_standby("1.0", Mode.ACTIVE, foreign=True, target=later, migrate_from="1")
            await leader.until(lambda: leader.failures, "it fails")
            assert "migrate" in leader.failures[0].error or "number" in leader.failures[0].error
            executor = leader.executors["1.0"]
            leader.lose(executor, executor.seats[standby])
            await leader.connect()
            await leader.until(leader.finished, "finished")

    asyncio.run(main())
    assert sorted(value for _, _, value, _ in written(tmp_path)) == list(range(9000))
