"""Ctrl-C at odd moments, as a terminal sends it: to every process of the group. The end is quick and complete."""

import signal
import subprocess
import sys
import time

import psutil
import pytest
from tests.bad_input.conftest import check_readable, interrupt_all
from tests.cli.conftest import free_ports

STUCK = """
import time
import penstock as ps
def stuck(n):
    print('stuck', flush=True)
    time.sleep(600)
flow = ps.Flow('stuck')
flow.source('in', ps.iterable([1])).map('m', stuck).sink('out', ps.collect())
"""
IMPORT_INTERRUPTED = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "penstock.cli.run":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from penstock.cli.entry import main
main()
"""


def until_said(command, text):
    """Wait until the command has said this on standard error."""
    said = b""
    while text.encode() not in said:
        data = command.process.stderr.read(1)
        assert data, said
        said += data
    return said.decode()


def ended(command, *statuses, timeout=30):
    """The command ends with one of the statuses and says nothing but what a person can read."""
    code, _, err = command.end(timeout)
    assert code in statuses, err
    check_readable(err)
    return err


def until_started(command):
    """Wait until the command has a child, or has ended."""
    end = time.monotonic() + 30
    while command.process.poll() is None and not psutil.Process(command.process.pid).children():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_while_the_command_is_imported():
    result = subprocess.run([sys.executable, "-c", IMPORT_INTERRUPTED], capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_flow_that_runs_is_drained(started, write, number):
    command = started("run", write("ps.sequence(rate=200)"))
    command.line()
    interrupt_all(command, number)
    assert "drained after" in ended(command, 0)


def test_a_flow_whose_workers_start_is_drained_or_ended(started, write):
    command = started("run", write("ps.sequence(rate=200)"))
    until_started(command)
    interrupt_all(command)
    ended(command, 0, 130)


def test_a_flow_whose_import_takes_long_is_ended_by_the_second(started, write):
    command = started("run", write(text="import time\ntime.sleep(60)\n"))
    until_started(command)
    interrupt_all(command)
    until_said(command, "Ctrl-C again ends it at once")
    interrupt_all(command)
    ended(command, 130)


def test_a_step_that_never_returns_is_ended_by_the_second(started, write):
    command = started("run", write(text=STUCK))
    assert command.line() == "stuck\n"
    interrupt_all(command)
    until_said(command, "Ctrl-C again ends it at once")
    interrupt_all(command)
    ended(command, 130)


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_a_cluster_while_it_starts(started, again):
    command = started("up", "--nodes", "1", "--port", free_ports(1))
    until_started(command)
    interrupt_all(command)
    if again:
        interrupt_all(command)
    ended(command, 0, 130)


def test_a_cluster_that_runs(started):
    command = started("up", "--nodes", "1", "--port", free_ports(1), "--json")
    assert command.line()
    interrupt_all(command)
    interrupt_all(command)
    ended(command, 0)


def test_the_demo_while_it_starts(started):
    command = started("demo", "--seconds", "30", "--port", free_ports(3))
    until_started(command)
    interrupt_all(command)
    ended(command, 0, 130)
