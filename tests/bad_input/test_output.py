"""Where the output goes: a reader that has left, a stream that is closed, a pipe, a terminal without colours."""

import subprocess
import sys

import pytest
from tests.bad_input.conftest import check_readable
from tests.cli.test_cli_run import on_a_terminal

PENSTOCK = [sys.executable, "-P", "-m", "penstock.cli"]
MANY = "ps.iterable(range(100_000))"


@pytest.mark.parametrize(
    ("sink", "options"),
    [("ps.stdout()", []), ("ps.collect()", []), ("ps.collect()", ["--json"])],
    ids=["stdout", "collect", "json"],
)
def test_the_reader_leaves(write, sink, options):
    command = [*PENSTOCK, "run", str(write(MANY, sink=sink)), "--quiet", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(30) == 1
    assert b"0" in first
    assert err == ""


@pytest.mark.parametrize("sink", ["ps.stdout()", "ps.collect()"])
def test_standard_output_is_closed(write, sink):
    command = [*PENSTOCK, "run", str(write("ps.iterable([1])", sink=sink))]
    result = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], capture_output=True, text=True, timeout=40)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    check_readable(result.stderr)
    assert "finished: 1 records" in result.stderr


def test_standard_error_is_closed(write):
    command = [*PENSTOCK, "run", str(write("ps.iterable([1])"))]
    result = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *command], capture_output=True, text=True, timeout=40)
    assert (result.returncode, result.stdout, result.stderr) == (0, "1\n", "")


def test_no_colours_in_a_pipe(run, write):
    """Also when the environment speaks of a terminal; `run` looks for the codes."""
    environ = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    code, out, _ = run(write("ps.iterable([{'a': 1}])", sink="ps.collect()"), env=environ)
    assert (code, out) == (0, '{"a":1}\n')
    code, _, err = run(write("ps.iterable([0])", ".map('divide', lambda n: 1 / n)"), env=environ)
    assert code == 1
    assert err.startswith("error: step 'divide'")


def test_no_colours_on_a_terminal_that_wants_none(write, monkeypatch):
    path = write("ps.iterable([0])", ".map('divide', lambda n: 1 / n)")
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, coloured = on_a_terminal(["run", path])
    assert "\x1b[1;31m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    code, plain = on_a_terminal(["run", path])
    assert code == 1
    assert "\x1b[1;31m" not in plain
    assert "[31m" not in plain
    assert "error:" in plain
