"""One contestant's run: its processes side by side, with a deadline, and what they reported."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.environments import HERE, Unavailable

ROOT = HERE.parent
DEADLINE = 180.0
"""Seconds that one run of one contestant may take."""


@dataclass
class Run:
    """What the processes of one run left: lines of facts, and files of latencies beside `out`."""

    out: Path
    facts: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""
    """How a process failed that had reported something before."""


def two_cores() -> str:
    """Bind this process, and so all that it starts, to two cores; returns what was done, for the report."""
    if not hasattr(os, "sched_setaffinity"):
        return f"not bound to cores (this system cannot); {os.cpu_count()} cores"
    chosen = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, chosen)
    return f"every contestant bound to the cores {', '.join(map(str, chosen))}"


def free_ports(count: int) -> list[str]:
    """Ports that nothing listens on at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Kill what is left of each process's group, and reap."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def race(commands: list[list[str]], settings: dict[str, Any], deadline: float = DEADLINE) -> Iterator[Run]:
    """Run the commands side by side until all have ended. Raises `Unavailable` with their last words when one fails."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        run = Run(Path(directory) / "out")
        environ = {
            **os.environ,
            **{f"BENCH_{name}": str(value) for name, value in settings.items()},
            "BENCH_OUT": str(run.out),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        with (Path(directory) / "log").open("w+b") as log:
            processes: list[subprocess.Popen[bytes]] = []
            try:
                for command in commands:
                    processes.append(
                        subprocess.Popen(
                            command, env=environ, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log,
                            stderr=subprocess.STDOUT, start_new_session=True,
                        )
                    )  # fmt: skip
                _wait(processes, time.monotonic() + deadline)
            finally:
                _end(processes)
            log.seek(0)
            words = log.read().decode("utf-8", "replace").strip()
        failed = [process.returncode for process in processes if process.returncode]
        if run.out.exists():
            run.facts = [json.loads(line) for line in run.out.read_text().splitlines()]
        if failed:
            run.problem = f"ended with status {failed[0]}: {words[-300:] or 'no output'}"
        if failed and not run.facts:
            raise Unavailable(run.problem)
        yield run


def _wait(processes: list[subprocess.Popen[bytes]], deadline: float) -> None:
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            print("  ended at the deadline", file=sys.stderr)
            return
