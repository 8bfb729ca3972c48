"""The commands that talk to a node."""

import io
import json

import msgspec
import pytest
from rich.console import Console
from tests.gateway.packages import package, write_flow

from penstock.cli.top import picture
from penstock.cluster.service import ExecutorView, MetricsView, ModelView, NodeView


def data(result):
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def online(cluster, tmp_path):
    """A model that is online."""
    flow = write_flow(tmp_path)
    assert cluster("model", "add", flow, "--online").exit_code == 0
    return flow


def test_nodes(cluster):
    assert data(cluster("nodes", "--json"))[0]["id"] == "node-1"
    text = cluster("nodes").stdout
    assert "node-1" in text
    assert "leader" in text


def test_the_life_of_a_model(cluster, tmp_path):
    flow = write_flow(tmp_path)
    assert data(cluster("model", "add", flow, "--name", "w", "--json"))["version"] == "1.0"
    again = cluster("model", "add", flow, "--name", "w")
    assert again.exit_code == 1
    assert again.stderr == "error: 'default/w' exists already\n"
    view = data(cluster("model", "online", "w", "--set", "n=3", "--set", "name=x y", "-e", "2", "--json"))
    assert view["config"] == {"n": 3, "name": "x y"}
    assert len(view["executors"]) == 2
    listing = cluster("model", "list").stdout
    assert "default/w" in listing
    assert "online" in listing
    assert "1.0" in listing
    shown = cluster("model", "show", "w").stdout
    assert "in.skipped" in shown
    assert "0.1" in shown
    assert cluster("model", "delete", "w").exit_code == 1
    assert cluster("model", "offline", "w").stderr == "default/w is offline\n"
    assert cluster("model", "delete", "w").exit_code == 0
    assert "no models" in cluster("model", "list").stdout
    assert cluster("model", "show", "w").exit_code == 1


def test_a_flow_that_does_not_build(cluster, tmp_path):
    result = cluster("model", "add", write_flow(tmp_path, "broken"))
    assert result.exit_code == 1
    assert "step 'count': a fold needs a key" in result.stderr
    assert "-> put key_by before it" in result.stderr
    assert "Traceback" not in result.stderr


def test_add_takes_a_file_an_object_of_it_a_directory_and_a_wheel(cluster, service, tmp_path, monkeypatch):
    write_flow(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cluster("model", "add", "words.py:flow", "--name", "g/object").stderr == "g/object is added\n"
    folder = tmp_path / "model"
    folder.mkdir()
    write_flow(folder)
    (folder / "pyproject.toml").write_text('[tool.penstock]\nname = "counted"\nflow = "words:flow"\n')
    assert cluster("model", "add", "model").stderr == "default/counted is added\n"
    (tmp_path / "w.whl").write_bytes(package(version="5.0"))
    assert data(cluster("model", "add", "w.whl", "--json"))["version"] == "5.0"
    assert {*service.catalogue} == {"g/object", "default/counted", "default/words"}
    missing = cluster("model", "add", "none.py")
    assert missing.exit_code == 2
    assert "none.py" in missing.stderr


@pytest.mark.parametrize("bad", ["n", "=3", "n=1 --set n=2"])
def test_bad_set(cluster, online, bad):
    result = cluster("model", "online", "words", "--set", *bad.split())
    assert result.exit_code == 2
    assert "--set" in result.stderr


def test_state(cluster, service, online):
    service.state = {"a": 1, "b/c": {"n": [2]}, 7: "seven"}
    assert cluster("state", "words", "count", "a").stdout == "1\n"
    assert cluster("state", "words", "count", "b/c").stdout == '{"n":[2]}\n'
    assert data(cluster("state", "words", "count", "7", "--type", "int", "--json")) == {"key": 7, "value": "seven"}
    assert [item["key"] for item in data(cluster("state", "words", "count", "--json"))] == [7, "a", "b/c"]
    assert len(data(cluster("state", "words", "count", "--json", "-n", "2"))) == 2
    assert cluster("state", "words", "count", "gone").exit_code == 1
    assert cluster("state", "words", "count", "x", "--type", "int").exit_code == 2
    assert cluster("state", "words", "count", "x", "--type", "colour").exit_code == 2


def test_placement(cluster, online):
    assert data(cluster("placement", "words", "--json"))[0]["assignment"] == {"0.0": "node-1"}
    assert "cut 25%" in cluster("placement").stdout
    assert cluster("placement", "none").exit_code == 1


def test_placement_draws_nodes_workers_executors_and_edges(cluster, online):
    text = cluster("placement").stdout
    for part in (
        "node-1  leader, cpu 0.00 of 2 cores", "default/words 0.0  in count", "0.0 > 1.0  node-1 > node-2  3.4 kB/s",
        "████", "now 50%, 1 kB/s between nodes, latency about 2.1 ms", "0.0: cannot be moved, it does not run yet",
    ):  # fmt: skip
        assert part in text
    assert "#in flight" not in text
    assert "in flight" in cluster("placement", "words", "--channels").stdout
    assert "\x1b" not in text


def test_rebalance(cluster, online, service):
    dry = cluster("rebalance", "--dry-run", "--strategy", "traffic")
    assert (dry.exit_code, dry.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in dry.stdout.splitlines()]
    assert lines[0] == "cut 38% -> 31%"
    for line in (
        "traffic between nodes 38% 31%", "latency, about 2.1 ms 1.85 ms", "load of node-2 0.25 cores 0.25 cores",
        "default/words 1.0 node-1 node-2 12 MB it has no standby", "node node-1 uses 3 of 2 cpu",
    ):  # fmt: skip
        assert line in lines
    begun = cluster("rebalance", "words")
    assert "the moves have begun" in begun.stderr
    assert "only in a dry run" not in begun.stdout
    assert data(cluster("rebalance", "--dry-run", "--json"))["after"]["cut"] == 0.31


def test_a_rebalance_that_cannot_be(cluster, online, service):
    assert "the strategies are" in cluster("rebalance", "--strategy", "best").stderr
    service.unmovable = "what would have to move would lose its state"
    refused = cluster("rebalance")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "would lose its state" in refused.stderr


def test_placement_of_nothing(cluster):
    assert "no model is online" in cluster("placement").stdout


def test_top_once(cluster, online):
    text = cluster("top", "--once").stdout
    for part in ("Nodes", "Models", "Executors", "node-1", "default/words", "50%"):
        assert part in text
    assert data(cluster("top", "--json"))["models"][0]["status"] == "online"


def test_top_until_ctrl_c(started, url):
    command = started("top", "--interval", "0.1", env={"PENSTOCK_URL": url})
    assert command.line() == "Nodes\n"
    assert "Nodes\n" in iter(command.line, "")  # and again
    command.interrupt()
    code, _, err = command.end()
    assert (code, err) == (0, "")


def wide():
    """A view with long names and large numbers."""
    executors = [
        ExecutorView(
            id=f"{i}.0", node="node-1", steps=("read", "normalise", "count"), state="running", rate_in=123_456.0,
            rate_out=123_456.0, cpu=0.98, busy=0.97, queue=12, keys=120_000, restarts=12,
        )
        for i in range(3)
    ]  # fmt: skip
    model = ModelView(
        name="production/visits-per-page", version="1.2.3", desired="online", status="degraded", generation=1,
        rate_in=123_456.0, rate_out=123_456.0, latency=[0.0123, 0.1, 0.256], restarts=12, lost=12_345,
        keys_lost=120_000, executors=executors,
    )  # fmt: skip
    node = NodeView(id="node-1", address="http://127.0.0.1:8700", incarnation=1, live=True, version="0.1.0")
    return msgspec.to_builtins(MetricsView(nodes=[node], models=[model], channels={}))


@pytest.mark.parametrize("width", [100, 140])
def test_top_puts_every_row_on_one_line(width):
    out = Console(width=width, file=io.StringIO())
    out.print(picture(wide(), width))
    lines = out.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for numbers in ("120,000", "12,345", "degraded", "http://127.0.0.1:8700", "keys lost", "running"):
        assert numbers in out.file.getvalue()
    assert sum(line.strip() != "" and "──" not in line for line in lines) == 3 + 3 + 1 + 1 + 3  # titles, headings, rows


def test_events_name_a_node_or_model_once(cluster, service):
    service.log_entry("node.joined", "node node-1 joined")
    service.log_entry("node.joined", "node node-10 joined")
    service.log_entry("model.online", "model default/words is to go online", "default/words")
    first, second, third = cluster("events").stdout.splitlines()
    assert first.endswith(" node node-1 joined")
    assert first.count("node-1") == 1
    assert second.endswith(" node-1: node node-10 joined")
    assert third.endswith(" node-1: model default/words is to go online")


def test_events(cluster, service):
    service.log_entry("node.joined", "hello [bold]", "")
    service.log_entry("model.failed", "boom", "default/words")
    text = cluster("events").stdout
    assert "hello [bold]" in text
    assert "default/words" in text
    (line,) = cluster("events", "--model", "words", "--json").stdout.splitlines()
    assert json.loads(line)["text"] == "boom"


def test_events_leave_the_authors_trace_to_json(cluster, service):
    text = "step 'div': division by zero\nTraceback (most recent call last):\n  File ..."
    service.log_entry("model.log", text)
    assert "Traceback" not in cluster("events").stdout
    assert "division by zero" in cluster("events").stdout
    assert "Traceback" in cluster("events", env={"PENSTOCK_DEBUG": "1"}).stdout
    assert json.loads(cluster("events", "--json").stdout)["text"] == text


def test_events_follow_until_ctrl_c(started, url, service):
    service.log_entry("node.joined", "first")
    command = started("events", "--follow", "--json", env={"PENSTOCK_URL": url})
    assert json.loads(command.line())["text"] == "first"
    service.log_entry("node.joined", "second")
    assert json.loads(command.line())["text"] == "second"
    command.interrupt()
    code, out, err = command.end()
    assert (code, out, err) == (0, "", "")


def test_events_show_who_asked(cluster, service):
    service.log_entry("model.added", "model default/words was added", "default/words", user="ada")
    service.log_entry("model.deleted", "ada deleted it", user="ada")
    first, second = cluster("events").stdout.splitlines()
    assert first.endswith("model default/words was added (by ada)")
    assert second.endswith("ada deleted it")


def test_results(cluster, service, online):
    service.records = [{"a": 1}, "text"]
    assert cluster("model", "results", "words").stdout == '{"a":1}\ntext\n'
    assert cluster("model", "results", "words", "-n", "1", "--json").stdout == '"text"\n'


@pytest.mark.parametrize("command", [["nodes"], ["top"], ["events"], ["model", "list"], ["state", "m", "s", "k"]])
def test_unreachable_node(penstock, command):
    result = penstock(*command, "--url", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "no Penstock node answers at http://127.0.0.1:1" in result.stderr
    assert "penstock up" in result.stderr
    assert "Traceback" not in result.output


def test_not_an_address(penstock):
    result = penstock("nodes", "--url", "here")
    assert result.exit_code == 2
    assert "not an address" in result.stderr
