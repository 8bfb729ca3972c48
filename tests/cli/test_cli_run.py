"""`penstock run` as people use it."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from penstock.cli.run import columns_of, progress_text
from penstock.cluster.local_run import Progress

BOUNDED = """
import penstock as ps
flow = ps.Flow("words")
(
    flow.source("in", ps.iterable(["a b", "a"]))
    .flat_map("split", str.split)
    .map("shape", lambda word: {"word": word * ps.config["times"]})
    .sink("out", ps.collect())
)
ps.config.defaults(times=1)
"""
PRINTING = BOUNDED.replace("ps.collect()", "ps.stdout()")
UNBOUNDED = """
import penstock as ps
flow = ps.Flow("ticks")
flow.source("in", ps.sequence(rate=200)).sink("out", ps.stdout())
"""
FAILING = """
import penstock as ps
flow = ps.Flow("failing")
flow.source("in", ps.iterable([1, 0])).map("divide", lambda n: 1 / n).sink("out", ps.collect())
"""


@pytest.fixture
def flow(tmp_path):
    def write(text):
        path = tmp_path / "flow.py"
        path.write_text(text)
        return path

    return write


def test_results_as_ndjson(started, flow):
    code, out, err = started("run", flow(BOUNDED), "--set", "times=2", "--json").end()
    assert code == 0, err
    records = [json.loads(line) for line in out.splitlines()]
    assert sorted(record["record"]["word"] for record in records) == ["aa", "aa", "bb"]
    assert {record["step"] for record in records} == {"out"}
    assert "words finished: 2 records" in err


def test_quiet_prints_results_alone(started, flow):
    code, out, err = started("run", flow(BOUNDED), "--quiet", "--workers", "2").end()
    assert (code, err) == (0, "")
    assert sorted(out.splitlines()) == ['{"word":"a"}', '{"word":"a"}', '{"word":"b"}']


@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_drains(started, flow, again, tmp_path):
    options = ["--checkpoint", str(tmp_path / "state")] if again else []
    command = started("run", flow(UNBOUNDED), *options)
    first = command.line()
    assert first.strip().isdecimal()
    command.interrupt()
    code, _, err = command.end()
    assert code == 0, err
    assert "draining" in err
    assert "drained after" in err
    if again:
        command = started("run", flow(UNBOUNDED), *options)
        assert int(command.line()) > int(first)
        command.interrupt()
        code, _, err = command.end()
        assert code == 0
        assert "continued from checkpoint" in err


def test_the_authors_error_is_a_paragraph(started, flow):
    code, _, err = started("run", flow(FAILING)).end()
    assert code == 1
    assert "divide" in err
    assert "flow.py:4" in err
    assert "ZeroDivisionError" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "args", "named"),
    [
        ("", [], "flow"),
        ("import nonexistent_module", [], "nonexistent_module"),
        ("def (", [], "SyntaxError"),
        (BOUNDED, ["--set", "times"], "--set"),
        (BOUNDED, ["--workers", "0"], "--workers"),
        (BOUNDED, ["--checkpoint", __file__], "is a file"),
    ],
)
def test_wrong_usage_is_2(started, flow, text, args, named):
    code, _, err = started("run", flow(text), *args).end()
    assert code == 2, err
    assert named in err
    assert "Traceback" not in err


def test_no_such_file(penstock):
    result = penstock("run", "none.py")
    assert result.exit_code == 2
    assert result.stderr == "error: no such file or directory: none.py\n"


def on_a_terminal(args, until=None):
    """Run on a pseudo-terminal of 100 columns; Ctrl-C when `until` has been seen. (exit status, what was shown)"""
    terminal, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock.cli", *map(str, args)],
        stdin=other, stdout=other, stderr=other, env=os.environ | {"TERM": "xterm-256color"}, start_new_session=True,
    )  # fmt: skip
    os.close(other)
    shown = b""
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    data = os.read(terminal, 65536)
                except OSError:  # the other end is closed
                    break
                if not data:
                    break
                shown += data
            elif process.poll() is not None:
                break
            if until is not None and until in shown:
                process.send_signal(signal.SIGINT)
                until = None
        return process.wait(10), shown.decode()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(terminal)


def test_a_terminal_gets_a_table(flow):
    code, shown = on_a_terminal(["run", flow(BOUNDED)])
    assert code == 0, shown
    assert " word " in shown.replace("\x1b[1m", " ").replace("\x1b[0m", " ")
    assert "words finished: 2 records" in shown


def test_printed_records_stand_above_the_bar(flow):
    code, shown = on_a_terminal(["run", flow(UNBOUNDED)], until=b" records, ")
    assert code == 0, shown
    assert "/s" in shown
    numbers = [line for line in shown.replace("\r", "\n").replace("\x1b[2K", "\n").split("\n") if line.isdecimal()]
    assert numbers[:3] == ["0", "1", "2"]
    assert "drained after" in shown


def test_progress_says_what_is_known():
    known = Progress(records=12300, rate=4100.4, share=0.5, lag=12, checkpoint=3, executors=[], metrics=[], elapsed=1.0)
    assert progress_text(known) == "50%, 12,300 records, 4,100/s, lag 12, checkpoint 3"
    little = Progress(records=0, rate=0.0, share=None, lag=None, checkpoint=None, executors=[], metrics=[], elapsed=1.0)
    assert progress_text(little) == "0 records, 0/s"


def test_columns():
    assert columns_of([{"a": 1}, {"b": 2, "a": 3}]) == ["a", "b"]
    assert columns_of([{"a": 1}, 2]) == []
    assert columns_of([]) == []
