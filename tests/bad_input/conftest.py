"""Bad input as people meet it: the real command in a process of its own, and what it says and how it ends."""

import json
import os
import re
import signal

import pytest
from tests.cli.conftest import free_ports, penstock, started

__all__ = ["penstock", "started"]  # fixtures of the command line's own tests

HEAD = "import penstock as ps\nflow = ps.Flow('bad', on_error={on_error!r})\n"


def check_readable(text):
    """No trace, no colours: what a person or a log file can read."""
    assert "Traceback" not in text
    assert "\x1b" not in text


def flow_text(source, steps="", sink="ps.stdout()", on_error="fail"):
    """A flow from these parts, its steps on line 3."""
    return HEAD.format(on_error=on_error) + f"flow.source('in', {source}){steps}.sink('out', {sink})\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of the commands."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(folder):
    """Write a flow from its parts to a file; gives the path."""

    def to_file(*parts, name="author.py", text=None, **more):
        path = folder / name
        path.write_text(flow_text(*parts, **more) if text is None else text)
        return path

    return to_file


@pytest.fixture
def run(started):
    """`penstock run …` to its end: (exit status, standard output, standard error), both readable."""

    def to_the_end(*args, timeout=40, **options):
        code, out, err = started("run", *args, **options).end(timeout)
        check_readable(out + err)
        return code, out, err

    return to_the_end


class Cluster:
    """A real cluster of one node, and commands against it in this process."""

    def __init__(self, url, invoke):
        self.url, self.invoke = url, invoke

    def __call__(self, *args, code=0, **options):
        """Run a command, which has to end with `code`; gives its output and its notes in one text."""
        result = self.invoke(*args, env={"PENSTOCK_URL": self.url, "NO_COLOR": "1"}, **options)
        text = result.stdout + result.stderr
        assert result.exit_code == code, text
        check_readable(text)
        if code:
            assert result.stderr.startswith("error: ")
        return text

    def show(self, name):
        """The model as `model show --json` tells it."""
        return json.loads(self("model", "show", name, "--json"))


@pytest.fixture
def cluster_beside(folder, penstock, started):
    """Start a cluster of one node in a working directory that holds files of these names."""
    commands = []

    def start(*names):
        for name in names:
            (folder / name).write_text("raise RuntimeError('the wrong module')\n")
        command = started("up", "--nodes", "1", "--port", free_ports(1), "--json")
        commands.append(command)
        line = command.line()
        assert line, command.end()
        return Cluster(json.loads(line)["nodes"][0]["url"], penstock)

    yield start
    for command in commands:
        command.interrupt()
        code, _, err = command.end()
        assert code == 0, err


@pytest.fixture
def cluster(cluster_beside):
    """A cluster of one node on a free port."""
    return cluster_beside()


def interrupt_all(command, number=signal.SIGINT):
    """Ctrl-C as a terminal sends it: to the command and everything it has started in its process group."""
    os.killpg(command.process.pid, number)


def one_line(text):
    """The text with every run of white space as one blank."""
    return re.sub(r"\s+", " ", text)
