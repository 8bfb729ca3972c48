"""`python -m penstock.worker`: started by a launcher, ends with its supervisor."""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import socket
import sys
import threading
import time

from penstock.errors import PenstockError
from penstock.worker.control import WorkerControl
from penstock.worker.loop import Worker
from penstock.worker.transport import Transport

_ORPHAN_GRACE = 3.0


def _watch_parent(parent: int) -> None:
    """End with the parent even while the author's code never returns to the loop (which would see end-of-file)."""
    while os.getppid() == parent:
        time.sleep(0.5)
    time.sleep(_ORPHAN_GRACE)
    os._exit(3)


def main() -> int:
    """Run a worker until its supervisor is done with it."""
    parser = argparse.ArgumentParser(prog="python -m penstock.worker")
    parser.add_argument("--control-fd", type=int, required=True, help="a connected stream socket")
    parser.add_argument("--data-dir", required=True, help="directory for ipc sockets")
    parser.add_argument("--bind", help="IP address for a tcp data socket instead of ipc")
    parser.add_argument("--name", default="worker", help="for people")
    options = parser.parse_args()
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    threading.Thread(target=_watch_parent, args=(os.getppid(),), name="parent", daemon=True).start()
    control = WorkerControl(socket.socket(fileno=options.control_fd))
    try:
        Worker(control, Transport(options.data_dir, options.bind)).run()
    except PenstockError as error:
        print(f"worker {options.name}: {error}", file=sys.stderr)  # noqa: T201 - the worker's own log
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
