"""`penstock demo` as people run it: processes, signals, a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

import httpx
import psutil
import pytest

DEMO = [sys.executable, "-m", "penstock.cli", "demo"]
DEADLINE = 90.0


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_DEMO")}


def lines_until(process: subprocess.Popen[str], wanted: str) -> str:
    """The first line of its standard output that has `wanted` in it."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if wanted in line:
            return line
    raise AssertionError(f"{wanted!r} was not said: {''.join(seen)}")


@contextlib.contextmanager
def demo(*options: str, **variables: str):
    """The demo with plain lines; whatever happens, it is gone afterwards."""
    process = subprocess.Popen(
        [*DEMO, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment() | variables
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=40)
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_it_ends_by_itself_and_counts_every_reading() -> None:
    done = subprocess.run(
        [*DEMO, "--json", "--seconds", "4"], capture_output=True, text=True, timeout=DEADLINE, env=environment()
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ended"] == "finished"
    assert found["records"] == {"pushed": 69_561, "counted": 69_561, "exact": True}
    assert len(found["nodes"]) == 3
    assert found["windows"] == {"labelled": 19, "hit": 8, "missed": 11}
    assert found["false_alarms"] == 9


def test_its_api_answers_while_it_runs_and_ctrl_c_ends_it_in_good_order() -> None:
    with demo("--seconds", "120") as process:
        line = lines_until(process, "/v1/state/")
        family = psutil.Process(process.pid).children(recursive=True)
        url = line.split("curl ")[1].strip()
        deadline = time.monotonic() + 30
        with httpx.Client(trust_env=False) as client:
            while (answer := client.get(url)).status_code != 200 and time.monotonic() < deadline:
                time.sleep(0.1)
        assert answer.json()["value"]["records"] > 0
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, rest
        assert "exact:" in rest
        assert len(family) >= 4
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive


def test_killing_it_leaves_no_process() -> None:
    # The nodes' logs are left behind, for whoever wants to know.
    with tempfile.TemporaryDirectory(prefix="d") as folder, demo("--seconds", "120", TMPDIR=folder) as process:
        lines_until(process, "/v1/state/")
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive


def test_ctrl_c_while_it_starts_ends_it_too() -> None:
    with tempfile.TemporaryDirectory(prefix="d") as folder, demo("--seconds", "120", TMPDIR=folder) as process:
        lines_until(process, "starting")
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, rest


def test_on_a_terminal_it_shows_a_screen_and_leaves_the_table() -> None:
    terminal, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    process = subprocess.Popen(
        [*DEMO, "--seconds", "3"],
        stdin=inner, stdout=inner, stderr=inner, start_new_session=True,
        env=environment() | {"TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(inner)
    try:
        text = all_that_is_shown(terminal).decode("utf-8", "replace")
        assert process.wait(timeout=30) == 0, text[-2000:]
    finally:
        os.close(terminal)
        if process.poll() is None:
            process.kill()
            process.wait()
    for expected in ("node-3", "machine temperature", "hit", "Labelled windows and what was detected", "exact:"):
        assert expected in text


def all_that_is_shown(terminal: int) -> bytes:
    """What is written to a pseudo-terminal until its other end is closed."""
    shown, deadline = bytearray(), time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.5)[0]:
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # Linux says EIO when the other end is closed
                break
            if not piece:
                break
            shown += piece
    return bytes(shown)


@pytest.mark.parametrize("options", [["--seconds", "0"], ["--port", "80"], ["--seconds", "soon"]])
def test_impossible_options_are_refused(options: list[str]) -> None:
    done = subprocess.run([*DEMO, *options], capture_output=True, text=True, timeout=DEADLINE, env=environment())
    assert done.returncode == 2
    assert options[0] in done.stderr
