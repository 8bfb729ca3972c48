"""Clusters on this machine: `penstock up` and `penstock node` as processes."""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.cli.conftest import free_ports

from penstock.cli.node import data_folder
from penstock.client import Client

WORDS = """
import penstock as ps
flow = ps.Flow("words")
flow.source("in", ps.push()).key_by("word", lambda r: r["w"]).count("count").sink("out", ps.collect())
"""


def until(condition, timeout=40):
    """Wait for a condition."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def up(started):
    """Start a cluster with `penstock up`; gives the command and what it says when it is ready."""
    commands = []

    def start(nodes, *options):
        command = started("up", "--nodes", nodes, "--port", free_ports(nodes), "--json", *options)
        commands.append(command)
        line = command.line()
        assert line, command.end()
        return command, json.loads(line)

    yield start
    for command in commands:  # a killed `up` would take its nodes along, but not at once
        if command.process.poll() is None:
            command.process.terminate()
            command.process.wait(40)


def test_a_cluster_from_start_to_ctrl_c(up, penstock, tmp_path):
    command, ready = up(2)
    urls = [node["url"] for node in ready["nodes"]]
    with Client(urls[0]) as first, Client(urls[1]) as second:
        assert {node["id"] for node in first.nodes()} == {"node-1", "node-2"}
        flow = tmp_path / "words.py"
        flow.write_text(WORDS)
        added = penstock("model", "add", flow, "--online", "--url", urls[0])
        assert added.exit_code == 0, added.stderr
        assert second.push("words/in", [{"w": "a"}, {"w": "b"}, {"w": "a"}]).accepted == 3
        assert second.push("words/in", [{"w": "b"}], client="me", seq=1).accepted == 1
        second.push("words/in", [{"w": "b"}], client="me", seq=1)  # a repeat: taken once
        until(lambda: first.list_state("words", "count")["items"][-1:] == [{"key": "b", "value": 2}])
        assert first.state("words", "count", "a") == 2
        assert penstock("state", "words", "count", "a", "--url", urls[1]).stdout == "2\n"
        assert penstock("model", "delete", "words", "--url", urls[0]).exit_code == 1
        until(lambda: any(row["records_in"] for row in first.model("words")["executors"]))
    command.interrupt()
    code, out, err = command.end()
    assert code == 0, err
    assert out == ""
    assert "Traceback" not in err
    assert not any(psutil.pid_exists(node["pid"]) for node in ready["nodes"])


def test_a_cluster_that_is_started_again_knows_its_models(up, tmp_path):
    """Valkey is a new one: the nodes' journals and libraries know."""
    data = tmp_path / "data"
    flow = tmp_path / "words.py"
    flow.write_text(WORDS)
    command, ready = up(2, "--data", data)
    with Client(ready["nodes"][0]["url"]) as client:
        added = client.add_model(flow)
    command.interrupt()
    assert command.end()[0] == 0
    assert {path.name for path in data.iterdir()} == {"node-1", "node-2"}
    command, ready = up(2, "--data", data)
    with Client(ready["nodes"][1]["url"]) as client:
        assert client.model("words")["digest"] == added["digest"]
        assert client.online("words")["status"] == "online"
    command.interrupt()
    assert command.end()[0] == 0


def test_the_nodes_go_with_a_killed_parent(up):
    command, ready = up(2)
    children = [psutil.Process(node["pid"]) for node in ready["nodes"]]
    workers = [worker for child in children for worker in child.children(recursive=True)]
    assert workers
    command.process.kill()
    until(lambda: not any(process.is_running() for process in children + workers))


def test_a_lost_node_is_told_and_the_rest_goes_on(up):
    command, ready = up(2)
    os.kill(ready["nodes"][1]["pid"], signal.SIGKILL)
    with Client(ready["nodes"][0]["url"]) as client:
        until(lambda: [node["live"] for node in client.nodes() if node["id"] == "node-2"] in ([False], []))
    command.interrupt()
    code, _, err = command.end()
    assert code == 0
    assert "node-2 ended with status -9" in err


def test_the_end_of_the_last_node_is_an_error(up):
    command, ready = up(1)
    os.kill(ready["nodes"][0]["pid"], signal.SIGKILL)
    code, _, err = command.end()
    assert code == 1
    assert "no node is left" in err


@pytest.mark.parametrize("delay", [0.0, 0.6, 1.2])
def test_ctrl_c_while_it_starts(started, delay):
    command = started("up", "--nodes", 2, "--port", free_ports(2))
    with contextlib.suppress(psutil.TimeoutExpired):
        psutil.Process(command.process.pid).wait(delay)
    command.interrupt()
    code, _, err = command.end()
    assert code in (0, 130, -signal.SIGINT)  # before Python is up, the signal itself ends it
    assert "Error" not in err


@contextlib.contextmanager
def occupied():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


@pytest.mark.parametrize("command", ["up", "node"])
def test_a_port_in_use_is_told_before_anything_starts(penstock, command):
    with occupied() as port:
        result = penstock(command, "--redis", "redis://127.0.0.1:1", "--port", port)
    assert result.exit_code == 2
    assert f"port {port} on 127.0.0.1 cannot be used" in result.stderr
    assert "--port" in result.stderr


@pytest.mark.parametrize("command", ["up", "node"])
@pytest.mark.parametrize(
    ("redis", "code", "named"),
    [("redis://127.0.0.1:1", 1, "127.0.0.1:1"), ("http://127.0.0.1:1", 2, "Redis URL"), ("nonsense", 2, "Redis URL")],
)
def test_a_redis_that_cannot_be_used(started, command, redis, code, named):
    found, _, err = started(command, "--port", free_ports(3), "--redis", redis).end()
    assert found == code, err
    assert named in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--bind", "0.0.0.0"], "no token and no TLS"),
        (["--bind", "0.0.0.0", "--token", "t"], "no TLS"),
        (["--bind", "0.0.0.0", "--token", "t", "--tls-cert", "c.pem"], "both"),
        (["--tls-cert", "/none/c.pem", "--tls-key", "/none/k.pem"], "/none/c.pem"),
        (["--bind", "203.0.113.7", "--token", "t", "--tls-cert", __file__, "--tls-key", __file__], "203.0.113.7"),
        (["--role", "lazy"], "no role 'lazy'"),
    ],
)
def test_nodes_that_must_not_start(penstock, options, named):
    result = penstock("node", "--redis", "redis://127.0.0.1:1", "--port", free_ports(1), *options)
    assert result.exit_code == 2
    assert named in result.stderr


def test_too_many_ports(penstock):
    result = penstock("up", "--port", 65535)
    assert result.exit_code == 2
    assert "65535" in result.stderr


@pytest.mark.parametrize("text", ["", "relative/data"])
def test_where_a_node_keeps_its_data(monkeypatch, text):
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert data_folder("penstock", "host-8700") == Path("/data/penstock/penstock/host-8700")
    assert data_folder("a/b", "..") == Path("/data/penstock/a%2Fb/%2E%2E")
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("XDG_DATA_HOME", text)  # only an absolute path counts
    monkeypatch.setattr(sys, "platform", "linux")
    assert data_folder("c", "n") == Path("/home/ada/.local/share/penstock/c/n")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert data_folder("c", "n") == Path("/home/ada/Library/Application Support/penstock/c/n")


@pytest.mark.parametrize("command", [["up", "--port", "1024"], ["node", "--redis", "unix:///nowhere"]], ids=" ".join)
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("speed=3", "the settings are: strategy, initial, alpha"), ("alpha=2", "the placement limit alpha cannot be 2"),
        ("strategy=best", "adaptive, balance, even"), ("interval=often", "$.interval"), ("moves=0", "at least 1"),
        ("horizon=0", "horizon cannot be 0"), ("horizon", "not an assignment"),
    ],
)  # fmt: skip
def test_settings_of_balancing_that_make_no_sense_start_nothing(penstock, command, setting, said):
    result = penstock(*command, "--balance", setting)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_settings_of_balancing_reach_the_nodes():
    from penstock.cli.balance_options import arguments, balancing

    given = ["strategy=traffic", "gamma=null", "interval=60"]
    settings = balancing(given)
    assert (settings.strategy, settings.gamma, settings.interval) == ("traffic", None, 60.0)
    assert balancing(list(arguments(True, given)[2::2])) == settings
    assert arguments(True, given)[0] == "--rebalance"
    assert arguments(False, None) == ("--no-rebalance",)
