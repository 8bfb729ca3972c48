"""Runs a flow in a process of its own, so that a test can kill it: TARGET WORKERS EXECUTORS CHECKPOINT_DIR INTERVAL."""

import asyncio
import sys

from penstock.cluster.local_run import RunRequest, run
from penstock.settings import RunSettings


def main() -> None:
    target, workers, executors, checkpoint, interval = sys.argv[1:6]
    request = RunRequest(
        target=target,
        workers=int(workers),
        executors=int(executors),
        checkpoint_url=checkpoint,
        settings=RunSettings(checkpoint_interval=float(interval), batch_records=64),
        config=dict(argument.split("=", 1) for argument in sys.argv[6:]),
    )
    asyncio.run(run(request))


if __name__ == "__main__":
    main()
