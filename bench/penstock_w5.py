"""W5 on Penstock: what a kill -9 costs in each recovery class, over real node processes on this machine.

    python -m bench.penstock_w5 kills CLASS KILLS      the worker of the keyed step's primary is killed so many times
    python -m bench.penstock_w5 moves CLASS MOVES      an executor with 100 MB of state goes from node to node
    python -m bench.penstock_w5 rate CLASS SECONDS     records per second as fast as they go, without trouble

Kills: 2,000 records per second through a source, a keyed step that numbers each key's records, and a sink that notes
number and time. The gap is the longest silence at the sink around a kill. Lost and repeated are counted from the
numbers: each key's must be 1, 2, 3 … A kill comes when every executor is protected again, at a random moment.

Appends one JSON line per figure to the file that `BENCH_OUT` names.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.measure import report
from bench.penstock_w6 import MODELS, WHEEL, Bench, bench
from bench.w5_flow import LARGE, MODULE, RACE
from penstock.model.package import build

RATE = 2000
KEYS, FILLING = 400_000, 120.0
"""Keys of the large state, about 100 MB, and seconds to fill it."""
PROTECTED = 60.0
"""Seconds for every executor to be protected again."""
AROUND = 3.0
"""Seconds after a kill in which the longest silence is looked for."""
STILL = ("--no-rebalance",)
"""Nothing moves of its own."""
PROJECT = '[project]\nname = "{name}"\nversion = "1"\n\n[tool.penstock]\nflow = "flow_of_w5:flow"\n'


async def online(cluster: Bench, name: str, text: str, recovery: str) -> None:
    """Add the model and bring it online."""
    folder = cluster.scratch / name
    folder.mkdir()
    (folder / "flow_of_w5.py").write_text(text)
    (folder / "pyproject.toml").write_text(PROJECT.format(name=name))
    made = build(folder, cluster.scratch)
    await cluster.ask("POST", MODELS, content=made.path.read_bytes(), headers=WHEEL)
    await cluster.ask("POST", f"{MODELS}/default/{name}/online", json={"recovery": recovery})


async def shown(cluster: Bench, name: str) -> dict[str, Any]:
    """What the cluster says of the model."""
    answer = await cluster.clients[0].get(f"{MODELS}/default/{name}")
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


async def protected(cluster: Bench, name: str) -> int:
    """Wait until every executor runs, and is protected; the process of the keyed step's primary."""
    async with asyncio.timeout(PROTECTED):
        while True:
            model = await shown(cluster, name)
            if model["status"] == "online":
                pid = next(int(each["pid"]) for each in model["executors"] if each["id"] == "1.0")
                if pid:
                    return pid
            await asyncio.sleep(0.05)


async def kills(recovery: str, number: int) -> None:
    """Kill the primary of the keyed step so many times."""
    rng = random.Random(5)
    async with bench(3, STILL) as cluster:
        name = "numbered"
        await online(cluster, name, MODULE.format(arrived=str(cluster.arrived), name=name, rate=RATE), recovery)
        await protected(cluster, name)
        await asyncio.sleep(1.0)
        at: list[int] = []
        for _ in range(number):
            pid = await protected(cluster, name)
            await asyncio.sleep(0.3 + rng.random() * 0.5)
            at.append(time.monotonic_ns())
            os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(AROUND)
        await protected(cluster, name)
        await asyncio.sleep(1.0)
        tell(cluster.arrived, at)


def tell(arrived: Path, at: list[int]) -> None:
    """The gaps, and what was lost and repeated."""
    times: list[int] = []
    numbers: dict[int, list[int]] = defaultdict(list)
    for line in arrived.read_text().splitlines():
        when, key, count = map(int, line.split())
        times.append(when)
        numbers[key].append(count)
    times.sort()
    for kill in at:
        near = [when for when in times if kill - 1e8 <= when <= kill + AROUND * 1e9]
        gap = max((b - a for a, b in itertools.pairwise(near)), default=int(AROUND * 1e9))
        report(what="gap", ms=gap / 1e6)
    repeated = sum(len(counts) - len(set(counts)) for counts in numbers.values())
    lost = sum(max(counts) - len(set(counts)) for counts in numbers.values())
    began_anew = sum(b < a for counts in numbers.values() for a, b in itertools.pairwise(counts))
    report(what="records", ms=float(len(times)))
    report(what="lost", ms=float(lost))
    report(what="repeated", ms=float(repeated))
    report(what="out of order", ms=float(began_anew))


async def moves(recovery: str, number: int) -> None:
    """Move the executor with the large state so many times; the gap is the longest silence at the sink meanwhile."""
    async with bench(3, STILL) as cluster:
        name = "large"
        text = LARGE.format(arrived=str(cluster.arrived), name=name, rate=RATE, keys=KEYS)
        await online(cluster, name, text, recovery)
        async with asyncio.timeout(FILLING):
            while sum(e["keys"] for e in (await shown(cluster, name))["executors"]) < KEYS:
                await asyncio.sleep(0.2)
        await protected(cluster, name)
        for place in range(number):
            await asyncio.sleep(2.0)
            began = time.monotonic_ns()
            model = await shown(cluster, name)
            here = next(each["node"] for each in model["executors"] if each["id"] == "1.0")
            there = next(n.name for n in cluster.cluster.nodes[place % 3 :] + cluster.cluster.nodes if n.name != here)
            await cluster.ask("POST", f"{MODELS}/default/{name}/move", json={"executor": "1.0", "node": there})
            async with asyncio.timeout(PROTECTED):
                while next(e["node"] for e in (await shown(cluster, name))["executors"] if e["id"] == "1.0") != there:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(1.0)
            ended = time.monotonic_ns()
            times = sorted(int(line.split()[0]) for line in cluster.arrived.read_text().splitlines())
            near = [when for when in times if began <= when <= ended]
            report(what="pause", ms=max(b - a for a, b in itertools.pairwise(near)) / 1e6)
            report(what="move", ms=(ended - began) / 1e6 - 1000)
            await protected(cluster, name)


async def rate(recovery: str, seconds: float) -> None:
    """Words per second of the counting step."""
    async with bench(2, STILL) as cluster:
        name = "race"
        await online(cluster, name, RACE.format(name=name), recovery)
        await protected(cluster, name)
        await asyncio.sleep(2.0)
        before, since = await counted(cluster, name), time.monotonic()
        await asyncio.sleep(seconds)
        after, until = await counted(cluster, name), time.monotonic()
        report(what="M words/s", ms=(after - before) / (until - since) / 1e6)


async def counted(cluster: Bench, name: str) -> float:
    """Words that the counting step has taken."""
    model = await shown(cluster, name)
    return float(sum(e["records_in"] for e in model["executors"] if e["id"].startswith("1.")))


def main(what: str, recovery: str, number: str) -> None:
    """See the module."""
    tempfile.tempdir = os.environ.get("BENCH_TMP") or None
    match what:
        case "kills":
            asyncio.run(kills(recovery, int(number)))
        case "moves":
            asyncio.run(moves(recovery, int(number)))
        case _:
            asyncio.run(rate(recovery, float(number)))


if __name__ == "__main__":
    main(*sys.argv[1:])
