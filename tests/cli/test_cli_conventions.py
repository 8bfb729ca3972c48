"""What holds for every command: help, exit codes, errors, colours, quick start."""

import io
import subprocess
import sys

import pytest

from penstock.cli.output import console, json_text, print_error, seconds, size, table, value_text
from penstock.errors import ClusterError, UsageError

COMMANDS = [
    "run", "demo", "up", "node", "push", "state", "placement", "rebalance", "nodes", "top", "events", "model",
    "operations",
]  # fmt: skip
CHANGES = ["add", "update", "rollback", "delete", "online", "offline"]
PRINTING = [
    ["run"], ["up"], ["operations"], ["push"], ["state"], ["placement"], ["rebalance"], ["nodes"], ["top"], ["events"],
    ["demo"],
    *(["model", name] for name in (*CHANGES, "list", "show", "results", "versions", "logs", "build")),
    *(["model", "plan", name] for name in CHANGES),
]  # fmt: skip


def test_help_names_every_command(penstock):
    result = penstock("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f" {command} " in result.stdout


@pytest.mark.parametrize("command", PRINTING, ids=" ".join)
def test_everything_printable_has_json(penstock, command):
    result = penstock(*command, "--help", env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_version(penstock):
    assert penstock("--version").stdout.startswith("penstock 0.")


@pytest.mark.parametrize("args", [["nonsense"], ["nodes", "--nonsense"], ["state"], ["up", "--nodes", "0"], ["node"]])
def test_wrong_usage_is_2(penstock, args):
    assert penstock(*args).exit_code == 2


def test_help_is_quick_because_nothing_heavy_is_imported():
    heavy = ("polars", "fastapi", "uvicorn", "httpx", "zmq", "redis", "sqlalchemy", "prometheus_client", "rich.live")
    code = f"import sys, penstock.cli.main; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.parametrize(("error", "code"), [(UsageError("no", remedy="do"), 2), (ClusterError("no", remedy="do"), 1)])
def test_errors_are_a_paragraph(penstock, monkeypatch, error, code):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr("penstock.cli.nodes.call", fail)
    result = penstock("nodes")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == "error: no\n  -> do\n"
    assert "Traceback" in penstock("nodes", env={"PENSTOCK_DEBUG": "1"}).stderr


def test_os_errors_too(penstock, monkeypatch):
    def fail(*args, **options):
        raise PermissionError(13, "Permission denied", "/x")

    monkeypatch.setattr("penstock.cli.nodes.call", fail)
    result = penstock("nodes")
    assert result.exit_code == 1
    assert "Permission denied" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_reader_of_a_pipe_may_leave():
    code = (
        "import penstock.cli.model as model\n"
        "def ask(*args): return [{'n': i} for i in range(100000)]\n"
        "model.ask = ask\n"
        "from penstock.cli.main import app\n"
        "app(['model', 'results', 'm', '--json'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 1
    assert error == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def coloured(stream, monkeypatch, **environ):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    console(stream).print("[red]x[/]")
    return "\x1b[3" in stream.getvalue()


def test_colours_on_a_terminal_alone(monkeypatch):
    assert coloured(Terminal(), monkeypatch)
    assert not coloured(io.StringIO(), monkeypatch)
    assert not coloured(Terminal(), monkeypatch, NO_COLOR="1")


def test_a_pipe_is_neither_wrapped_nor_cut():
    out = io.StringIO()
    console(out).print(table(["a", "#b"], [["x" * 300, 12345]]))
    assert "x" * 300 in out.getvalue()
    assert "12,345" in out.getvalue()


def test_a_long_error_is_not_wrapped(capsys):
    print_error(ClusterError("word " * 100 + "[red]"))
    assert capsys.readouterr().err == "error: " + "word " * 100 + "[red]\n"


def test_values_are_not_markup():
    out = io.StringIO()
    console(out).print(table(["a"], [["[red]x[/red]"], [None], [True], [0.5]]))
    assert "[red]x[/red]" in out.getvalue()


def test_units():
    assert [seconds(s) for s in (None, 0.0000031, 0.0124, 2.5)] == ["-", "3 µs", "12.4 ms", "2.5 s"]
    assert [size(b) for b in (512, 3_200_000, 7e9)] == ["512 B", "3.2 MB", "7 GB"]
    assert [value_text(v) for v in ("a", ["a", 1])] == ["a", '["a",1]']
    assert json_text({"a": {1, 2}}, indent=0) in ('{"a":[1,2]}',)
