"""Who takes part in W1 and W3, how each is started, and how its figure is read from what it reported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.data import words_directory, words_file
from bench.environments import HERE, Unavailable, python_of
from bench.measure import read_latencies
from bench.race import Run, free_ports, race

PEERS = HERE / "peers"
Figures = dict[str, float]
Commands = Callable[[str], list[list[str]]]
"""The interpreter to use -> the command lines of the run's processes."""


@dataclass(frozen=True)
class Contestant:
    """One row of a table."""

    name: str
    commands: Commands
    peer: str | None = None
    """The environment to run in; `None`: the project's."""
    settings: dict[str, Any] = field(default_factory=dict)
    words: Callable[[int], int] = lambda words: words
    """W1: how many words of the given number it gets (a slow one gets fewer, of the same distribution)."""
    copies: int = 1
    """W1: how often the input is repeated for it, so that its start-up is small beside it."""
    note: str = ""

    def python(self, install: bool) -> str:
        """Its interpreter. Raises `Unavailable`."""
        return sys.executable if self.peer is None else str(python_of(self.peer, install=install))


def _flow(name: str) -> Commands:
    def commands(python: str) -> list[list[str]]:
        return [[python, "-m", "penstock.cli", "run", str(HERE / name), "--workers", "2", "--quiet"]]

    return commands


def _limit(*arguments: str) -> Commands:
    return lambda python: [[python, "-m", "bench.limit", *arguments]]


def _two_bytewax(script: str) -> Commands:
    def commands(python: str) -> list[list[str]]:
        ports = free_ports(2)
        return [[python, str(PEERS / script), str(process), *ports] for process in range(2)]

    return commands


def _two_pathway(python: str) -> list[list[str]]:
    (port,) = free_ports(1)
    spawn = str(Path(python).with_name("pathway"))
    return [[spawn, "spawn", "-n", "2", "--first-port", port, python, str(PEERS / "pathway_w1.py")]]


def _script(name: str) -> Commands:
    return lambda python: [[python, str(PEERS / name)]]


W1 = [
    Contestant("Penstock", _flow("penstock_w1.py"), settings={"SINK": "null"}, note="2 workers, null sink"),
    Contestant(
        "Penstock, records at the sink",
        _flow("penstock_w1.py"),
        settings={"SINK": "records"},
        note="the same, every result made into a `Keyed` pair for a sink that drops it",
    ),
    Contestant("limit: 2 processes by hand", _limit("w1", "1024"), note="ZeroMQ + msgspec, frames of 1,024 words"),
    Contestant("limit, frames of 8,192", _limit("w1", "8192"), note="the same with larger frames"),
    Contestant("plain loop, 1 process", _limit("loop"), note="no hand-over at all"),
    Contestant(
        "Bytewax",
        _two_bytewax("bytewax_w1.py"),
        peer="bytewax",
        words=lambda words: words // 4,
        note="`stateful_map`, 2 processes",
    ),
    Contestant(
        "Pathway",
        _two_pathway,
        peer="pathway",
        words=lambda words: words // 4,
        note="2 processes; counts per commit of 100 ms, not per record",
    ),
    Contestant(
        "Spark Structured Streaming",
        _script("spark_w1.py"),
        peer="spark",
        copies=8,
        note="local[2], JVM expressions, counts per micro-batch",
    ),
    Contestant(
        "Flink SQL",
        _script("flink_w1.py"),
        peer="flink",
        copies=3,
        note="parallelism 2, JVM expressions, blackhole sink",
    ),
]

W3 = [
    Contestant("Penstock", _flow("penstock_w3.py"), note="`penstock run --workers 2`"),
    Contestant("limit: ZeroMQ one way", _limit("w3"), note="one message per record"),
    Contestant("Bytewax", _two_bytewax("bytewax_w3.py"), peer="bytewax", note="records that changed process"),
    Contestant("Ray actors", _script("ray_w3.py"), peer="ray", note="due records in one call, 4 calls under way"),
]


def throughput(contestant: Contestant, words: int, install: bool) -> Figures:
    """One run of W1: million words per second in the steady state. Raises `Unavailable`."""
    python = contestant.python(install)
    own = contestant.words(words)
    settings = {
        "INPUT": words_file(own),
        "DIRECTORY": words_directory(own, contestant.copies),
        "WORDS": own,
        "COPIES": contestant.copies,
        **contestant.settings,
    }
    with race(contestant.commands(python), settings) as run:
        return {"M words/s": _rate(run) / 1e6}


def _rate(run: Run) -> float:
    facts = run.facts
    if not facts:
        raise Unavailable("it reported nothing")
    if "seconds" in facts[0]:
        words, seconds = sum(fact["words"] for fact in facts), max(fact["seconds"] for fact in facts)
    else:
        words = sum(fact["records"] - fact["skipped"] for fact in facts)
        seconds = (max(fact["last"] for fact in facts) - min(fact["first"] for fact in facts)) / 1e9
    if words <= 0 or seconds <= 0:
        raise Unavailable("the run was too short, or too disturbed, for a figure")
    return float(words / seconds)


def latency(contestant: Contestant, rate: int, seconds: float, install: bool) -> Figures:
    """One run of W3 at one rate; milliseconds. The first third is not counted. Raises `Unavailable`."""
    python = contestant.python(install)
    with race(contestant.commands(python), {"RATE": rate, "SECONDS": seconds, **contestant.settings}) as run:
        rows = read_latencies(run.out)
    rows = [row for row in rows if row[0] >= rate * seconds / 3]
    if len(rows) < 2:
        raise Unavailable("no records arrived")
    began = min(emitted - number * 1e9 / rate for number, emitted, _ in rows)
    through = sorted((arrived - emitted) / 1e6 for _, emitted, arrived in rows)
    due = sorted((arrived - began - number * 1e9 / rate) / 1e6 for number, _, arrived in rows)
    arrivals = [arrived for _, _, arrived in rows]
    return {
        "p50": _quantile(through, 0.5),
        "p99": _quantile(through, 0.99),
        "p50 due": _quantile(due, 0.5),
        "p99 due": _quantile(due, 0.99),
        "achieved": (rows[-1][0] - rows[0][0]) / ((max(arrivals) - min(arrivals)) / 1e9),
    }


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def round_trip() -> Figures:
    """A raw ZeroMQ round trip, in milliseconds."""
    with race(_limit("ping")(sys.executable), {}) as run:
        return {name: float(value) for name, value in run.facts[0].items()}


def memory(flow: str, seconds: float) -> list[dict[str, float]]:
    """Observations of the workers' resident memory while a flow runs."""
    command = [sys.executable, "-m", "bench.memory", flow, str(seconds)]
    with race([command], {}, deadline=seconds + 60) as run:
        if not run.facts:
            raise Unavailable("no observation")
        return run.facts
