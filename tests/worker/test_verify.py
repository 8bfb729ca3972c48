"""What the throw-away process says about a model, without the process."""

import socket
import textwrap
import threading
from pathlib import Path

import msgspec
import pytest

from penstock.errors import FlowError, UsageError
from penstock.worker.verify import ANSWER_LIMIT, LENGTH, Answer, Request, answer, answered, explain, verify

GOOD = """
import penstock as ps
flow = ps.Flow("good")
flow.source("n", ps.sequence(3)).sink("out", ps.collect())
"""


def project(folder: Path, module: str, text: str, flow: str) -> str:
    """A model's directory."""
    folder.mkdir()
    (folder / f"{module}.py").write_text(textwrap.dedent(text))
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "{module.replace("_", "-")}"\nversion = "1"\n[tool.penstock]\nflow = "{flow}"\n'
    )
    return str(folder)


def test_the_self_test_of_the_flows_module_is_called(tmp_path):
    text = GOOD + "\ncalled = []\ndef self_test():\n    raise ValueError('called')\n"
    target = project(tmp_path / "a", "verify_a", text, "verify_a:flow")
    with pytest.raises(FlowError, match="the self-test of verify-a failed: ValueError: called"):
        verify(Request(target=target))
    assert verify(Request(target=target, self_test=False)).flow == "good"


def test_the_self_test_of_the_module_where_the_flow_is_made(tmp_path):
    target = project(tmp_path / "b", "verify_b", "from verify_made import make\n", "verify_b:make")
    made = GOOD.replace("flow =", "def make():\n    return flow\nflow =")
    (tmp_path / "b" / "verify_made.py").write_text(made + "\ndef self_test():\n    return False\n")
    with pytest.raises(FlowError, match=r"self_test\(\) returned False .*verify_made\.py:\d+"):
        verify(Request(target=target))


def test_an_error_of_a_self_test_names_its_line(tmp_path):
    text = GOOD + "\ndef self_test():\n    assert [1] == [2]\n"
    said = answered(Request(target=project(tmp_path / "c", "verify_c", text, "verify_c:flow")))
    assert said.topology is None
    assert said.flow
    assert "at verify_c.py:7: assert [1] == [2]" in said.error


def test_a_self_test_that_fails_says_what_to_do(tmp_path):
    text = GOOD + "\ndef self_test():\n    raise ValueError('no')\n"
    said = answered(Request(target=project(tmp_path / "e", "verify_e", text, "verify_e:flow"))).error
    assert said == (
        "the self-test of verify-e failed: ValueError: no\n  at verify_e.py:7: raise ValueError('no')\n"
        "  -> nothing has changed; correct it, or the test"
    )
    text = GOOD + "\ndef self_test():\n    raise ps.PenstockError('no', remedy='yes')\n"
    said = answered(Request(target=project(tmp_path / "f", "verify_f", text, "verify_f:flow"))).error
    assert said == "the self-test of verify-f failed: no\n  -> yes"


def test_a_file_that_is_not_python(tmp_path):
    (tmp_path / "verify_syntax.py").write_text("import penstock as ps\nflow = ps.Flow(\n")
    said = answered(Request(target=str(tmp_path / "verify_syntax.py")))
    assert said.error == "SyntaxError: '(' was never closed\n  at verify_syntax.py:2: flow = ps.Flow("
    text = "import penstock as ps\neval('1 +')\n"
    said = answered(Request(target=project(tmp_path / "g", "verify_g", text, "verify_g:flow")))
    assert "at verify_g.py:2: eval('1 +')" in said.error


def test_a_package_that_is_not_declared(tmp_path):
    text = "import verify_absent\n" + GOOD
    (tmp_path / "verify_h.py").write_text(text)
    said = answered(Request(target=str(tmp_path / "verify_h.py"))).error
    assert "No module named 'verify_absent'\n  at verify_h.py:1: import verify_absent\n" in said
    assert '-> add "verify_absent", or the package that brings it, to the dependencies in a "# /// script" head' in said
    (tmp_path / "verify_i.py").write_text('# /// script\n# dependencies = ["Verify-Absent>=1"]\n# ///\n' + text)
    assert "->" not in answered(Request(target=str(tmp_path / "verify_i.py"))).error
    said = answered(Request(target=project(tmp_path / "j", "verify_j", text, "verify_j:flow"))).error
    assert said.endswith("to the dependencies of pyproject.toml")
    text = GOOD + "\ndef self_test():\n    import verify_absent\n"
    said = answered(Request(target=project(tmp_path / "k", "verify_k", text, "verify_k:flow"))).error
    assert said.startswith("the self-test of verify-k failed: ModuleNotFoundError")
    assert said.count("->") == 1
    assert said.endswith("to the dependencies of pyproject.toml")


def test_a_wrong_request_is_told_from_a_wrong_flow(tmp_path):
    said = answered(Request(target=str(tmp_path / "missing.py")))
    assert not said.flow
    assert "there is no flow" in said.error


def test_an_error_without_a_readable_text():
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert explain(Odd()) == "Odd"
    assert len(explain(ValueError("x" * 10**6))) < 5000
    assert explain(UsageError("no", remedy="yes")) == "no\n  -> yes"


def served(data: bytes) -> tuple[int | None, bytes]:
    """The exit status for what comes on the socket, and what is answered."""
    ours, theirs = socket.socketpair()
    status: list[int] = []
    with ours, theirs:
        serving = threading.Thread(target=lambda: status.append(answer(theirs)))
        serving.start()
        ours.sendall(data)
        (size,) = LENGTH.unpack(ours.recv(LENGTH.size, socket.MSG_WAITALL))
        assert size < ANSWER_LIMIT
        said = ours.recv(size, socket.MSG_WAITALL)
        serving.join(20)
    return status[0], said


def test_one_request_one_answer(tmp_path):
    target = project(tmp_path / "d", "verify_d", GOOD, "verify_d:flow")
    body = msgspec.json.encode(Request(target=target))
    status, said = served(LENGTH.pack(len(body)) + body)
    assert status == 0
    topology = msgspec.json.decode(said, type=Answer).topology
    assert topology is not None
    assert topology.flow == "good"


@pytest.mark.parametrize("data", [b"", LENGTH.pack(100) + b"{}", LENGTH.pack(2**31)])
def test_a_request_that_cannot_be_read(data):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(UsageError):
            answer(theirs)
