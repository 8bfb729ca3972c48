"""`python -m penstock.worker`: started by a launcher, ends with its supervisor."""

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib
import os
import signal
import socket
import sys
import threading
import time

from penstock.errors import PenstockError
from penstock.worker.control import WorkerControl
from penstock.worker.loop import Worker
from penstock.worker.output import Capture
from penstock.worker.transport import Transport

_ORPHAN_GRACE = 3.0
_NEEDED = (
    "penstock.model.loader",
    "penstock.flow.aggregates",
    *(f"penstock.connectors.{name}" for name in ("pushed", "collected", "sequences", "discarded", "text_files")),
)


def _watch_parent(parent: int) -> None:
    """End with the parent even while the author's code never returns to the loop (which would see end-of-file)."""
    while os.getppid() == parent:
        time.sleep(0.5)
    time.sleep(_ORPHAN_GRACE)
    os._exit(3)


def _import_ahead() -> None:
    """What nearly every flow needs, before there is one: bringing a model online waits for no import but its own."""
    for module in _NEEDED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()


def main() -> int:
    """Run a worker until its supervisor is done with it."""
    parser = argparse.ArgumentParser(prog="python -m penstock.worker")
    parser.add_argument("--control-fd", type=int, required=True, help="a connected stream socket")
    parser.add_argument("--data-dir", required=True, help="directory for ipc sockets")
    parser.add_argument("--bind", help="IP address for a tcp data socket instead of ipc")
    parser.add_argument("--name", default="worker", help="for people")
    parser.add_argument("--capture", action="store_true", help="send what models print and log to the supervisor")
    options = parser.parse_args()
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    threading.Thread(target=_watch_parent, args=(os.getppid(),), name="parent", daemon=True).start()
    output = Capture()
    if options.capture:
        output.install()
    _import_ahead()
    control = WorkerControl(socket.socket(fileno=options.control_fd))
    try:
        Worker(control, Transport(options.data_dir, options.bind), output=output).run()
    except PenstockError as error:
        print(f"worker {options.name}: {error}", file=sys.stderr)  # noqa: T201 - the worker's own log
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
