"""Executors that are replicated lose nothing and repeat nothing when processes die: over real worker processes."""

import asyncio
import json
import textwrap
from collections import defaultdict
from pathlib import Path

import pytest

from penstock.exchange.replica.assignment import Mode
from tests.worker.replicated.leader import led, lines

FLOW = """
import penstock as ps
from penstock.flow.connector import Sink, Writer

class Append(Sink):
    # Shows records at once, at least once.
    def open(self, ctx):
        return AppendWriter(ctx.index)

class AppendWriter(Writer):
    def __init__(self, index):
        self.file = open({out!r} + f"-{{index}}", "a")

    def write(self, records):
        import json
        for record in records:
            self.file.write(json.dumps(record) + "\\n")
        self.file.flush()

def number(state, value):
    return state + 1, [value % 50, state + 1, value]

flow = ps.Flow("tried")
(
    flow.source("n", ps.sequence({n}, rate={rate}))
    .key_by("key", lambda n: n % 50)
    .fold("number", 0, number)
    .map("plain", lambda r: list(r.value))
    .key_by("again", lambda r: r[0])
    .fold("seen", 0, lambda state, r: (state + 1, r + [state + 1]))
    .map("values", lambda r: r.value)
    .sink("out", Append())
)
"""


def write(tmp_path: Path, n: int, rate: int) -> str:
    path = tmp_path / "tried.py"
    path.write_text(textwrap.dedent(FLOW).format(out=str(tmp_path / "out"), n=n, rate=rate))
    return str(path)


def check(tmp_path: Path, n: int) -> None:
    """Every key's records are numbered 1, 2, 3 … by both steps, in the order of the source, without gap or repeat."""
    by_key: dict[int, list[list[int]]] = defaultdict(list)
    for line in lines(tmp_path / "out-0"):
        key, first, value, second = json.loads(line)
        by_key[key].append([first, value, second])
    for key in range(50):
        values = list(range(key, n, 50))
        wanted = [[place + 1, value, place + 1] for place, value in enumerate(values)]
        assert by_key[key] == wanted, f"key {key}"


@pytest.mark.parametrize("mode", [Mode.ACTIVE, Mode.PASSIVE])
def test_without_trouble(tmp_path: Path, mode: Mode) -> None:
    async def main() -> None:
        plan = {"0.0": (0, [1]), "1.0": (1, [0]), "2.0": (0, [1])}
        target = write(tmp_path, 3000, 6000)
        async with led(target, {0: 1, 1: 1, 2: 1}, plan, mode) as leader:
            await leader.until(leader.protected, "protected")
            await leader.until(leader.finished, "finished")
            assert leader.alarms() == []

    asyncio.run(main())
    check(tmp_path, 3000)


@pytest.mark.parametrize("mode", [Mode.ACTIVE, Mode.PASSIVE])
@pytest.mark.parametrize("victim", ["0.0", "1.0"])
def test_primary_killed(tmp_path: Path, mode: Mode, victim: str) -> None:
    async def main() -> None:
        plan = {"0.0": (0, [1]), "1.0": (1, [0]), "2.0": (2, [])}
        target = write(tmp_path, 6000, 3000)
        async with led(target, {0: 1, 1: 1, 2: 1}, plan, mode) as leader:
            await leader.until(lambda: leader.protected("0.0", "1.0"), "protected")
            await leader.until(lambda: len(lines(tmp_path / "out-0")) > 1500, "half way")
            leader.kill(leader.worker_of(victim))
            await leader.until(lambda: leader.pauses(), "promoted")
            await leader.until(leader.finished, "finished")
            assert leader.alarms() == []

    asyncio.run(main())
    check(tmp_path, 6000)
