"""The leak plugin finds what a test leaves, and only that."""

import pytest

LEAKS = {
    "process": """
        import subprocess, sys
        def test_it():
            KEEP.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        """,
    "orphan": """
        import subprocess, sys
        CODE = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
        def test_it():
            subprocess.run([sys.executable, "-c", CODE], check=True)
        """,
    "zombie": """
        import os
        def test_it():
            if os.fork() == 0:
                os._exit(0)
        """,
    "socket": """
        import socket
        def test_it():
            KEEP.append(socket.socket())
        """,
    "file": """
        def test_it(tmp_path):
            KEEP.append(open(tmp_path / "x", "w"))
        """,
    "thread": """
        import threading
        def test_it():
            threading.Thread(target=threading.Event().wait, daemon=True, name="forgotten").start()
        """,
    "temporary": """
        import tempfile
        def test_it():
            tempfile.mkdtemp()
        """,
    "fixture": """
        import pytest, socket
        @pytest.fixture(scope="module")
        def server():
            KEEP.append(socket.socket())
            yield
        def test_it(server):
            pass
        """,
}
FOUND = {"orphan": "process", "zombie": "not reaped", "fixture": "socket"}

KILL_CHILDREN = """
import os, psutil
def pytest_unconfigure():
    mark = os.environ["PENSTOCK_TEST_RUN"]
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("PENSTOCK_TEST_RUN") == mark:
                process.kill()
        except psutil.Error:
            pass
"""


def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, source: str):
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest(KILL_CHILDREN)
    pytester.makepyfile("KEEP = []\n" + "\n".join(line[8:] for line in source.splitlines()))
    return pytester.runpytest_subprocess("-p", "tests.plugins.leaks", "-p", "no:cacheprovider", "--tb=short")


@pytest.mark.parametrize("kind", sorted(LEAKS))
def test_a_leak_fails_the_test(kind, pytester, monkeypatch, request):
    monkeypatch.setenv("PENSTOCK_TEST_GRACE", "0.2")
    result = run(pytester, monkeypatch, request, LEAKS[kind])
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*the test left behind:*", f"*{FOUND.get(kind, kind)}*"])


def test_what_is_closed_or_belongs_to_a_living_fixture_is_no_leak(pytester, monkeypatch, request):
    source = """
        import pytest, socket, subprocess, sys, tempfile, threading
        @pytest.fixture(scope="module")
        def server():
            with socket.socket() as sock:
                yield sock
        def test_first(server, tmp_path):
            with socket.socket(), tempfile.TemporaryDirectory(), open(tmp_path / "x", "w"):
                subprocess.run([sys.executable, "-c", ""], check=True)
            threading.Thread(target=lambda: None).start()
        def test_second(server):
            pass
        """
    result = run(pytester, monkeypatch, request, source)
    result.assert_outcomes(passed=2)


def test_a_service_that_is_missing_skips_or_fails(pytester, monkeypatch, request):
    source = """
        import pytest
        @pytest.mark.services("mqtt")
        def test_it():
            raise AssertionError("must not run")
        """
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PENSTOCK_TEST_MQTT", "127.0.0.1:1")
    monkeypatch.delenv("PENSTOCK_REQUIRE_SERVICES", raising=False)
    pytester.makeini("[pytest]\nmarkers = services: needs a server")
    pytester.makepyfile("\n".join(line[8:] for line in source.splitlines()))
    arguments = ("-p", "tests.plugins.services", "-p", "no:cacheprovider")
    pytester.runpytest_subprocess(*arguments).assert_outcomes(skipped=1)
    monkeypatch.setenv("PENSTOCK_REQUIRE_SERVICES", "1")
    result = pytester.runpytest_subprocess(*arguments)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*must run here*no server for mqtt*"])
