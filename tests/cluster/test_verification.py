"""Models that are tried out in throw-away processes: what they say, and what bad ones cannot do."""

import asyncio
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from penstock.cluster.trial import describe
from penstock.cluster.verification import Verified, Verifier, VerifyLimits
from penstock.errors import FlowError, UsageError, WorkerError
from penstock.model.environment import Environment

T = TypeVar("T")
GOOD = """
import penstock as ps
ps.config.defaults(threshold=3)
flow = ps.Flow("good")
flow.source("n", ps.sequence(10)).filter("big", lambda n: n > ps.config["threshold"]).sink("out", ps.collect())
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def written(text: str, name: str = "model.py") -> str:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return written


def verifying(work: Callable[[Verifier], Awaitable[T]], limits: VerifyLimits | None = None) -> T:
    async def main() -> T:
        verifier = Verifier(limits)
        await verifier.start()
        try:
            return await work(verifier)
        finally:
            await verifier.close()

    return asyncio.run(main())


def verify(target: str, config: dict[str, Any] | None = None, **limits: Any) -> Verified:
    return verifying(lambda verifier: verifier.verify(target, config), VerifyLimits(**limits))


def refused(target: str, config: dict[str, Any] | None = None, **limits: Any) -> str:
    """The error; another model is verified afterwards all the same."""

    async def work(verifier: Verifier) -> str:
        with pytest.raises(FlowError) as caught:
            await verifier.verify(target, config)
        after = Path(target).with_name("after.py")
        after.write_text(GOOD)
        assert (await verifier.verify(str(after))).topology.flow == "good"
        return str(caught.value)

    return verifying(work, VerifyLimits(**limits))


def test_a_good_model_is_described(write):
    topology = verify(write(GOOD), {"threshold": 5}).topology
    assert topology.flow == "good"
    assert [name for stage in topology.stages for name in stage.steps] == ["n", "big", "out"]


def test_many_at_once(write):
    async def work(verifier: Verifier) -> list[str]:
        names = [f"m{number}" for number in range(12)]
        targets = [write(GOOD.replace('"good"', f'"{name}"'), f"{name}.py") for name in names]
        found = await asyncio.gather(*(verifier.verify(target) for target in targets))
        assert [each.topology.flow for each in found] == names
        return names

    verifying(work)


def test_what_is_printed_does_not_mix_with_the_answer(write):
    text = 'import os\nos.write(1, b"[[[" * 100_000)\nprint("{}" * 100_000)\n' + GOOD
    assert verify(write(text)).topology.flow == "good"


def test_an_error_names_the_authors_line(write):
    text = refused(write("import penstock as ps\nlimits = {}\nlimit = limits['high']\n"))
    assert text == "KeyError: 'high'\n  at model.py:3: limit = limits['high']"


def test_an_error_of_the_flow_is_as_it_is_locally(write):
    text = refused(write('import penstock as ps\nflow = ps.Flow("f")\nflow.source("n", 7)\n'))
    assert "step 'n'" in text
    assert "model.py:3" in text


def test_a_setting_that_is_not_declared(write):
    text = refused(write(GOOD), {"treshold": 5})
    assert "unknown setting 'treshold'" in text
    assert "threshold" in text.partition("->")[2]


def test_what_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="there is no flow at") as caught:
        verify(str(tmp_path / "missing.py"))
    assert not isinstance(caught.value, FlowError)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return False", ["self_test() returned False", "model.py:"]),
        ("assert 1 + 1 == 3, 'sum'", ["AssertionError: sum", "model.py:", "assert 1 + 1 == 3"]),
        ("raise SystemExit(2)", ["SystemExit: 2"]),
    ],
)
def test_a_self_test_that_fails(write, body, expected):
    text = refused(write(GOOD + f"\ndef self_test():\n    {body}\n"))
    for part in expected:
        assert part in text


def test_a_self_test_that_passes_or_is_not_wanted(write):
    passing = write(GOOD + "\ndef self_test():\n    return 5 in range(10)\n")
    failing = write(GOOD + "\ndef self_test():\n    return False\n", "failing.py")

    async def work(verifier: Verifier) -> None:
        assert (await verifier.verify(passing)).topology.flow == "good"
        assert (await verifier.verify(failing, self_test=False)).topology.flow == "good"

    verifying(work)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import os; os._exit(0)", "ended the interpreter (status 0)"),
        ("import os, sys; print('the end', flush=True); os._exit(9)", "status 9); its last words were:\nthe end"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os.abort()", "SIGABRT"),
        ("import os, time; os.closerange(0, 1000); time.sleep(60)", "closed descriptors"),
        ("import os; os.closerange(3, 1000); import penstock as ps; ps.Flow('x')", "closed descriptors"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        (
            "import threading, sys; threading.Thread(target=threading.Event().wait).start(); sys.exit(4)",
            "SystemExit: 4",
        ),
        ("class Bad(Exception):\n    def __str__(self): raise ValueError\nraise Bad", "Bad"),
        ("def deeper(): deeper()\ndeeper()", "RecursionError"),
    ],
)
def test_code_that_ends_the_process(write, code, expected):
    assert expected in refused(write(code))


def test_an_endless_loop(write):
    assert "was not built after 0.5 s" in refused(write("while True: pass"), seconds=0.5)


def test_too_much_processor_time(write):
    assert "1 s of processor time" in refused(write("while True: pass"), seconds=30, cpu=1)


def test_too_much_memory(write):
    text = refused(write("import penstock\nkept = []\nwhile True:\n    kept.append(bytearray(2**20))"), memory=2**26)
    assert "more memory than a model may use while it is verified (the limit is 64 MiB)" in text
    assert "model.py:4: kept.append(bytearray(2**20))" in text


def test_a_file_that_grows_too_large(write):
    code = "file = open('big', 'wb')\nwhile True:\n    file.write(bytes(2**16))"
    assert "OSError" in refused(write(code), file=2**20)


CHILDREN = """
import os, subprocess, sys, time
sleep = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
for _ in range(4):
    subprocess.Popen(sleep)
    subprocess.Popen(sleep, start_new_session=True)
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        subprocess.Popen(sleep, start_new_session=True)
        time.sleep(600)
    os._exit(0)
"""


@pytest.mark.parametrize("end", [GOOD, "raise ValueError('end')", "os._exit(1)", "while True: pass"])
def test_no_process_is_left(write, end):
    target = write(CHILDREN + end)
    others = set(psutil.Process().children(recursive=True))  # of fixtures for the whole session

    async def work(verifier: Verifier) -> None:
        for _ in range(2):
            try:
                await verifier.verify(target)
            except FlowError as error:
                assert end != GOOD, error  # noqa: PT017
            own = set(psutil.Process().children(recursive=True)) - others
            assert [process for process in own if "penstock.worker.forkserver" not in process.cmdline()] == []

    verifying(work, VerifyLimits(seconds=3))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts processes in /proc")
def test_processes_that_multiply(write):
    code = """
    import os, time
    for _ in range(300):
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
    time.sleep(600)
    """
    assert "started more than 256 processes" in refused(write(code), seconds=30)


def test_the_surroundings_of_a_model(write, tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_TOKEN", "s3cret-1")
    monkeypatch.setenv("MY_API_KEY", "s3cret-2")
    monkeypatch.setenv("DB", "mariadb://user:s3cret-3@db/x")
    monkeypatch.setenv("HARMLESS", "yes")
    seen = tmp_path / "seen"
    code = f"""
    import os, sys, tempfile
    open("left", "w").close()
    with open({str(seen)!r}, "w") as out:
        print(os.getcwd(), tempfile.gettempdir(), sys.stdin.read() == "", file=out)
        print(os.environ, file=out)
        print(os.getpgid(0) == os.getsid(0) == os.getpid(), sorted(os.listdir("/dev/fd")), file=out)
    """
    verify(write(textwrap.dedent(code) + GOOD))
    text = seen.read_text()
    directory, temporary, no_input = text.splitlines()[0].split()
    assert directory == temporary
    assert not Path(directory).exists()
    assert no_input == "True"
    assert "s3cret" not in text
    assert "HARMLESS" in text
    assert text.splitlines()[-1].startswith("True ")
    descriptors = eval(text.splitlines()[-1].removeprefix("True "))
    assert len(descriptors) <= 6, "0, 1, 2, the answer's, the file's, and that of the listing"


def test_the_forkserver_is_started_again(write):
    async def work(verifier: Verifier) -> None:
        good = write(GOOD)
        await verifier.verify(good)
        [server] = [p for p in psutil.Process().children() if "penstock.worker.forkserver" in p.cmdline()]
        server.kill()
        assert (await verifier.verify(good)).topology.flow == "good"
        killer = write(
            "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nimport time; time.sleep(60)", "killer.py"
        )
        with pytest.raises(FlowError, match="must not end other processes"):
            await verifier.verify(killer)
        assert (await verifier.verify(good)).topology.flow == "good"

    verifying(work)


def test_another_interpreter(write, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o700)
    seen = tmp_path / "seen"
    code = f"import sys, pathlib; pathlib.Path({str(seen)!r}).write_text(str(sys.argv))\n" + GOOD

    async def work(verifier: Verifier) -> None:
        found = await verifier.verify(write(code), environment=Environment("k", str(python)))
        assert found.topology.flow == "good"
        with pytest.raises(FlowError, match="ended the interpreter") as caught:
            await verifier.verify(write(code), environment=Environment("k", str(tmp_path / "missing")))
        assert "missing cannot be run" in str(caught.value)

    verifying(work)
    assert "verify" in seen.read_text()


def test_a_cancelled_verification_leaves_nothing(write):
    async def work(verifier: Verifier) -> None:
        task = asyncio.create_task(verifier.verify(write("import time; time.sleep(60)")))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        started = time.monotonic()
        assert (await verifier.verify(write(GOOD))).topology.flow == "good"
        assert time.monotonic() - started < 30

    verifying(work)


def test_closing_ends_what_runs(write):
    async def main() -> None:
        verifier = Verifier()
        task = asyncio.create_task(verifier.verify(write("import time; time.sleep(60)")))
        await asyncio.sleep(0.5)
        await verifier.close()
        with pytest.raises(WorkerError, match="being stopped"):
            await task

    asyncio.run(main())


def test_a_run_describes_its_flow_as_its_user_would(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_API_KEY", "needed")
    (tmp_path / "size").write_text("7")
    code = """
    import os, subprocess, sys
    print("{}" * 100_000)
    subprocess.Popen(["sleep", "600"])
    assert os.environ["MY_API_KEY"] == "needed" and open("size").read() == "7" and sys.stdin.read() == ""
    def self_test():
        return False
    """
    topology = asyncio.run(describe(write(textwrap.dedent(code) + GOOD), {"threshold": 5}))
    assert topology.flow == "good"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import os; print('the end', flush=True); os._exit(9)", "status 9); its last words were:\nthe end"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "(SIGKILL)\n  -> a flow's file only says"),
        ("import os, time; os.closerange(0, 1000); time.sleep(60)", "closed descriptors"),
        ("raise MemoryError('mine')", "MemoryError: mine\n  at model.py:1"),
        ("while True: pass", "was not built after 3 s"),
        ("import os, subprocess; subprocess.Popen(['sleep', '600']); os._exit(1)", "interpreter (status 1)"),
    ],
)
def test_what_a_run_says_of_code_that_is_no_flow(write, code, expected):
    with pytest.raises(FlowError) as caught:
        asyncio.run(describe(write(code), seconds=3))
    assert expected in str(caught.value)
