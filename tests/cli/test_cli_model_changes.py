"""`penstock model`: versions, plans, what was rolled back, what is awaited; `penstock operations`."""

import json
import os
import pty
import re
import select
import time

import pytest
from tests.gateway.packages import package, write_flow


def data(result):
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def words(cluster, tmp_path):
    """A model that is offline."""
    flow = write_flow(tmp_path)
    assert cluster("model", "add", flow).exit_code == 0
    return flow


def test_versions_come_and_go(cluster, service, words):
    write_flow(words.parent, version="2.0")
    assert cluster("model", "update", "words", words).stderr == "default/words is updated to 2.0\n"
    assert data(cluster("model", "update", "words", "--set", "n=4", "--json"))["config"] == {"n": 4}
    # what is not named keeps its value
    assert data(cluster("model", "update", "words", "--set", "m=1", "--json"))["config"] == {"n": 4, "m": 1}
    assert data(cluster("model", "online", "words", "--set", "m=2", "--json"))["config"] == {"n": 4, "m": 2}
    assert cluster("model", "update", "words", words).exit_code == 1
    assert cluster("model", "update", "words", words, "--live").exit_code == 0
    cluster("model", "offline", "words")
    versions = data(cluster("model", "versions", "words", "--json"))
    assert [v["version"] for v in versions] == ["2.0", "2.0", "2.0", "2.0", "1.0"]
    listing = cluster("model", "versions", "words").stdout
    assert "present" in listing
    assert versions[0]["digest"][:12] in listing
    assert versions[0]["user"] in listing
    back = cluster("model", "rollback", "words", "--to", versions[-1]["generation"])
    assert back.stderr == "default/words is back at 1.0\n"
    assert cluster("model", "rollback", "words", "--json").exit_code == 0
    assert cluster("model", "rollback", "words", "--to", "99").exit_code == 1


def test_an_update_of_nothing(cluster, words):
    result = cluster("model", "update", "words")
    assert result.exit_code == 2
    assert "--set" in result.stderr


def test_show(cluster, service, words):
    service.catalogue["default/words"].requires = ["numpy>=2"]
    cluster("model", "online", "words", "--set", "m=5", "--recovery", "passive")
    text = cluster("model", "show", "words").stdout
    digest = service.catalogue["default/words"].digest
    for part in ("version 1.0", f"package {digest[:12]}", "requires: numpy>=2", "recovery passive", "how many"):
        assert part in text
    (n,) = [line for line in text.splitlines() if line.split()[:1] == ["n"]]
    assert n.split()[1:3] == ["1", "default"]
    (m,) = [line for line in text.splitlines() if line.split()[:1] == ["m"]]
    assert m.split()[1:] == ["5"]
    assert "last operation: online default/words" in text
    assert ", done (op-1)" in text


@pytest.mark.parametrize(
    "command",
    [
        ["add", "FLOW", "--name", "other"],
        ["update", "words", "FLOW"],
        ["update", "words", "--set", "n=2"],
        ["delete", "words"],
        ["online", "words"],
    ],
)
@pytest.mark.parametrize("form", ["--dry-run", "plan"])
def test_plans(cluster, service, words, command, form):
    command = [words if arg == "FLOW" else arg for arg in command]
    before = dict(service.operations_)
    args = ["plan", *command] if form == "plan" else [*command, "--dry-run"]
    text = cluster("model", *args)
    assert text.exit_code == 0, text.stderr
    assert f"{command[0]} default/" in text.stdout
    assert "would do it" in text.stdout
    assert data(cluster("model", *args, "--json"))["possible"] is True
    assert service.operations_ == before


def test_a_plan_that_is_refused_is_1(cluster, service, words, monkeypatch):
    from penstock.cluster.service import ChangePlan, Outcome

    async def refuse(*args, **options):
        plan = ChangePlan(kind="delete", model="default/words", possible=False, reason="it is online", remedy="stop it")
        return Outcome(plan=plan)

    monkeypatch.setattr(service, "delete_model", refuse)
    result = cluster("model", "plan", "delete", "words")
    assert result.exit_code == 1
    assert result.stdout == "delete default/words: not possible\n"
    assert result.stderr == "error: it is online\n  -> stop it\n"


def test_what_was_rolled_back_says_why_per_node(cluster, service, words):
    service.refusals = {"node-2": "disk [full]", "node-1": "no interpreter"}
    result = cluster("model", "online", "words")
    assert result.exit_code == 1
    first, *lines = result.stderr.splitlines()
    assert first == "error: online of default/words was rolled back: some nodes cannot do it"
    rows = [line.split(maxsplit=1) for line in lines if line.strip().startswith("node-")]
    assert sorted((node, why.strip()) for node, why in rows) == [
        ("node-1", "no interpreter"),
        ("node-2", "disk [full]"),
    ]
    as_json = cluster("model", "online", "words", "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["nodes"] == service.refusals
    assert json.loads(as_json.stdout)["operation"] in service.operations_


def test_operations(cluster, service, words):
    listing = cluster("operations").stdout
    assert "op-0" in listing
    assert "done" in listing
    service.refusals = {"node-2": "disk full"}
    cluster("model", "online", "words")
    service.refusals = {}
    one = cluster("operations", "op-1").stdout
    assert "rolled back: some nodes cannot do it (op-1)" in one
    assert "disk full" in one
    assert data(cluster("operations", "op-1", "--json"))["phase"] == "aborted"
    assert [o["id"] for o in data(cluster("operations", "--json"))] == ["op-1", "op-0"]
    assert cluster("operations", "none").exit_code == 1
    assert cluster("operations", "--cancel").exit_code == 2
    assert cluster("operations", "op-0", "--cancel").exit_code == 1


def test_operations_of_nothing(cluster):
    assert cluster("operations").stdout == "nothing is being changed\n"


def test_cancelling(cluster, started, url, service, words):
    service.slow = True
    command = started("model", "online", "words", env={"PENSTOCK_URL": url})
    deadline = time.monotonic() + 20
    while not service.waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "node-1, node-2" in cluster("operations").stdout
    assert cluster("operations", "op-1", "--cancel").exit_code == 0
    code, _, err = command.end()
    assert code == 1
    assert "rolled back: cancelled by" in err


def test_a_terminal_shows_which_nodes_are_awaited(started, url, service, tmp_path):
    service.slow = True
    terminal, inner = pty.openpty()
    command = started(
        "model", "add", write_flow(tmp_path), stderr=inner, env={"PENSTOCK_URL": url, "TERM": "xterm", "COLUMNS": "100"}
    )
    os.close(inner)
    shown = b""
    try:
        deadline = time.monotonic() + 30
        while b"waiting for node-1, node-2" not in shown:
            assert time.monotonic() < deadline, shown
            if select.select([terminal], [], [], 0.1)[0]:
                shown += os.read(terminal, 65536)
        service.settle()
        assert command.process.wait(30) == 0
    finally:
        os.close(terminal)


def test_ctrl_c_detaches(started, url, service, tmp_path):
    service.slow = True
    command = started("model", "add", write_flow(tmp_path), env={"PENSTOCK_URL": url})
    deadline = time.monotonic() + 30
    while not service.waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    command.interrupt()
    code, _, err = command.end()
    assert code == 130
    assert "goes on by itself" in err
    assert "Traceback" not in err
    service.settle()
    assert "default/words" in service.catalogue


def test_logs(cluster, started, url, service, words):
    service.log_entry("model.log", "hello [bold]", "default/words")
    assert cluster("model", "logs", "words").stdout.rstrip().endswith("hello [bold]")
    command = started("model", "logs", "words", "--follow", "--json", "-n", "1", env={"PENSTOCK_URL": url})
    assert json.loads(command.line())["text"] == "hello [bold]"
    service.log_entry("model.log", "bye", "default/words")
    assert json.loads(command.line())["text"] == "bye"
    command.interrupt()
    assert command.end() == (0, "", "")
    assert cluster("model", "logs", "none").exit_code == 1


def test_logs_say_when_where_and_how_grave(cluster, service, words):
    empty = cluster("model", "logs", "words")
    assert (empty.stdout, empty.stderr) == ("", "nothing was printed or logged yet\n")
    service.log_entry("model.log", "hello", "default/words")
    line = cluster("model", "logs", "words").stdout
    assert re.fullmatch(r"\d\d:\d\d:\d\d node-1 info    hello\n", line)


def test_a_model_of_another_group(cluster, tmp_path):
    assert cluster("model", "add", write_flow(tmp_path), "--name", "plant/pump").exit_code == 0
    for command in (["online"], ["show"], ["offline", "--dry-run"]):
        result = cluster("model", *command, "pump")
        assert result.exit_code == 1
        assert result.stderr == "error: there is no model 'default/pump'\n  -> did you mean plant/pump?\n"
    assert "did you mean" not in cluster("model", "show", "plant/pumps").stderr


def test_build(penstock, tmp_path):
    flow = write_flow(tmp_path)
    out = tmp_path / "out"
    built = penstock("model", "build", flow, "--out", out)
    path = out / "words-1.0-py3-none-any.whl"
    assert built.stdout == f"{path}\n"
    assert path.read_bytes() == package()
    described = data(penstock("model", "build", flow, "--out", out, "--name", "w", "--json"))
    assert (described["name"], described["version"]) == ("w", "1.0")
    assert described["path"] == str(out / "w-1.0-py3-none-any.whl")
    missing = penstock("model", "build", tmp_path / "none.py")
    assert missing.exit_code == 2
