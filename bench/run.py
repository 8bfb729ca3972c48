"""`make bench`: every contestant in turn, several times, then one table, bench/RESULTS.md and the plots.

    make bench                                  everything, about twenty minutes
    make bench ARGS="--only w1 --repeat 5"      one workload
    make bench ARGS="--skip spark,flink"        without some peers
    make bench ARGS="--only w5 --kills 30"      kill -9 in each recovery class
    make bench ARGS="--only w6 --cycles 1000"   operations on models, and a long look for leaks

What is not run keeps its section in bench/RESULTS.md.

A peer that cannot be installed or started is named with the reason, and the rest goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from typing import Any

from bench import contestants, w5, w6
from bench.contestants import W1, W3, Contestant, Figures
from bench.data import DATA
from bench.environments import HERE, Unavailable, python_of
from bench.race import two_cores
from bench.report import Results, console_table, write_results

RATES = (1_000, 10_000, 100_000)
WORKLOADS = ("w1", "w3", "memory", "w5", "w6")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make bench", description="Run the benchmarks side by side.")
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads: w1,w3,memory,w5,w6")
    parser.add_argument("--repeat", type=int, default=3, help="rounds; every figure is the median of them")
    parser.add_argument("--words", type=int, default=4_000_000, help="words of W1")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="length of one W3 run; the first third is not counted"
    )
    parser.add_argument("--overload", type=float, default=30.0, help="seconds of the overload run")
    parser.add_argument("--kills", type=int, default=10, help="W5: kills of each class in one round")
    parser.add_argument("--nodes", default=",".join(map(str, w6.NODES)), help="W6: sizes of the clusters")
    parser.add_argument("--models", type=int, default=2, help="W6: models in one round of a cluster")
    parser.add_argument("--cycles", type=int, default=100, help="W6: cycles of online and offline on one node")
    parser.add_argument("--skip", default="", help="peers to leave out: bytewax,pathway,spark,flink,ray")
    parser.add_argument("--no-install", action="store_true", help="only peers that are installed already")
    parser.add_argument("--dry", action="store_true", help="print the tables, do not write bench/RESULTS.md and plots")
    return parser.parse_args()


class Rounds:
    """Figures of all rounds: (workload, contestant) -> name -> values; and why somebody is missing."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.problems: dict[tuple[str, str], str] = {}

    def take(self, workload: str, contestant: Contestant, run: Any) -> None:
        """Run once and keep the figures; a contestant that failed is not tried again."""
        place = (workload, contestant.name)
        if place in self.problems:
            return
        try:
            figures: Figures = run()
        except Unavailable as problem:
            self.problems[place] = str(problem)
            print(f"  {workload} {contestant.name}: not measured: {problem}", flush=True)
            return
        for name, value in figures.items():
            self.values[place][name].append(value)
        shown = ", ".join(f"{name} {value:,.3g}" for name, value in figures.items())
        print(f"  {workload} {contestant.name}: {shown}", flush=True)

    def medians(self) -> dict[tuple[str, str], Figures]:
        """The median of every figure."""
        return {
            place: {name: statistics.median(values) for name, values in figures.items()}
            for place, figures in self.values.items()
        }


def measure(options: argparse.Namespace) -> Results:
    """All rounds of all workloads."""
    only, skip = set(options.only.split(",")), set(options.skip.split(","))
    install = not options.no_install
    cores = two_cores()
    results = Results(options=vars(options), cores=cores)
    rounds = Rounds()
    racing = W1 * ("w1" in only) + W3 * ("w3" in only)
    taking = [contestant for contestant in racing if contestant.peer not in skip]
    for contestant in taking:  # installations before the first measurement
        if contestant.peer is not None:
            try:
                contestant.python(install)
            except Unavailable as problem:
                for workload in ("w1", *(f"w3 at {rate:,}/s" for rate in RATES)):
                    rounds.problems[workload, contestant.name] = str(problem)
    for number in range(options.repeat):
        print(f"round {number + 1} of {options.repeat}", flush=True)
        if "w1" in only:
            for contestant in (each for each in W1 if each in taking):
                rounds.take("w1", contestant, lambda c=contestant: contestants.throughput(c, options.words, install))
        if "w3" in only:
            for rate in RATES:
                for contestant in (each for each in W3 if each in taking):
                    rounds.take(
                        f"w3 at {rate:,}/s",
                        contestant,
                        lambda c=contestant, r=rate: contestants.latency(c, r, options.seconds, install),
                    )
            results.round_trips.append(contestants.round_trip())
        if "w5" in only:
            w5.one_round(results.recovered, options.kills)
        if "w6" in only:
            w6.one_round(results.managed, results.sizes(), options.models)
    results.figures, results.problems = rounds.medians(), rounds.problems
    results.spread = {place: dict(figures) for place, figures in rounds.values.items()}
    if "memory" in only:
        print("memory", flush=True)
        try:
            results.empty = contestants.memory("empty", 4.0)
            results.overload = contestants.memory("overload", options.overload)
        except Unavailable as problem:
            results.problems["memory", "Penstock"] = str(problem)
    if "w6" in only and options.cycles:
        w6.cycle(results.managed, options.cycles)
    return results


def plot(results: Results) -> str | None:
    """Draw the plots in an environment of their own; the reason when that is not possible."""
    DATA.mkdir(exist_ok=True)
    data = DATA / "results.json"
    data.write_text(json.dumps(results.for_plots()))
    try:
        python = python_of("plots", install=not results.options["no_install"])
    except Unavailable as problem:
        return str(problem)
    done = subprocess.run(
        [str(python), str(HERE / "plot.py"), str(data), str(HERE / "plots")],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    return done.stderr.strip()[-300:] if done.returncode else None


def main() -> None:
    """See the module."""
    options = arguments()
    began = time.monotonic()
    results = measure(options)
    results.took = time.monotonic() - began
    print(console_table(results))
    if options.dry:
        return
    problem = plot(results)
    if problem is not None:
        print(f"no plots: {problem}", file=sys.stderr)
    path = write_results(results, HERE)
    print(f"written: {path.relative_to(HERE.parent)} ({results.took / 60:.1f} minutes)")


if __name__ == "__main__":
    main()
