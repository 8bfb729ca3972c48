"""Resident memory of workers: with an empty state, and fed ten times faster than the flow can process.

    python -m bench.memory empty|overload SECONDS

Appends one JSON line per observation to the file that `BENCH_OUT` names: seconds, and MB of each worker.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from bench.measure import report
from penstock.cluster.local_run import Progress, RunRequest, run


def observe(progress: Progress) -> None:
    """Note the workers' memory."""
    if progress.metrics and all(each.rss for each in progress.metrics):
        workers = sorted(each.rss / 2**20 for each in progress.metrics)
        report(seconds=progress.elapsed, smallest=workers[0], largest=workers[-1], records=progress.records)


async def main(name: str, seconds: float) -> None:
    """Run the flow for a while, then drain it."""
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, stop.set)
    target = Path(__file__).with_name(f"penstock_{name}.py")
    await run(RunRequest(target=str(target), workers=2), observe, stop)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
