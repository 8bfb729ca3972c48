"""Commands in this process (`penstock`) or as a process of their own (`started`), against a gateway on a real port."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from tests.gateway.fake_service import FakeService
from typer.testing import CliRunner

from penstock.cli.main import app
from penstock.gateway.app import create_app


def free_ports(count):
    """The first of `count` neighbouring ports that are free."""
    for start in range(20000 + os.getpid() % 20000, 60000, count):
        sockets = []
        try:
            for port in range(start, start + count):
                sock = socket.socket()
                sockets.append(sock)
                sock.bind(("127.0.0.1", port))
            return start
        except OSError:
            continue
        finally:
            for sock in sockets:
                sock.close()
    raise RuntimeError("no free ports")


@contextmanager
def serving(service):
    """A gateway for `service` on a free port; gives its address."""
    config = uvicorn.Config(create_app(service), port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            assert thread.is_alive()
            time.sleep(0.005)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        service.close()
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def service():
    return FakeService()


@pytest.fixture
def url(service):
    with serving(service) as address:
        yield address


@pytest.fixture(autouse=True)
def data_home(monkeypatch, tmp_path):
    """Nodes keep nothing in the home of whoever runs the tests."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data-home"))


@pytest.fixture
def penstock(monkeypatch):
    """Run a command in this process; its result has exit_code, stdout, stderr."""
    for name in ("PENSTOCK_URL", "PENSTOCK_TOKEN", "PENSTOCK_REDIS", "PENSTOCK_DEBUG"):
        monkeypatch.delenv(name, raising=False)

    def run(*args, **options):
        return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="penstock", **options)

    return run


@pytest.fixture
def cluster(penstock, url):
    """The same against the fake cluster."""

    def run(*args, env=None, **options):
        return penstock(*args, env={"PENSTOCK_URL": url} | (env or {}), **options)

    return run


class Command:
    """`penstock …` as a process of its own."""

    def __init__(self, *args, **options):
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PENSTOCK_") or "TEST" in key}
        self.rest = b""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "penstock.cli", *map(str, args)],
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=options.pop("stdout", subprocess.PIPE), stderr=options.pop("stderr", subprocess.PIPE),
            bufsize=0, start_new_session=True,
            env=environ | {"PYTHONFAULTHANDLER": "1"} | options.pop("env", {}), **options,
        )  # fmt: skip

    def line(self, timeout=60):
        """The next line of its standard output."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self.rest:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no line within {timeout} s, only {self.rest!r}"
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                break
            self.rest += data
        line, newline, self.rest = self.rest.partition(b"\n")
        return (line + newline).decode()

    def interrupt(self):
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def end(self, timeout=60):
        """(exit status, standard output, standard error)."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # with PYTHONFAULTHANDLER: tells where it was
            out, err = self.process.communicate()
            raise AssertionError(f"still running after {timeout} s: {out.decode()}\n{err.decode()}") from None
        return self.process.returncode, (self.rest + (out or b"")).decode(), err.decode()


@pytest.fixture
def started():
    """Start a command; whatever still runs at the end is killed."""
    commands = []

    def start(*args, **options):
        commands.append(Command(*args, **options))
        return commands[-1]

    yield start
    for command in commands:
        if command.process.poll() is None:
            command.process.kill()
        for stream in (command.process.stdin, command.process.stdout, command.process.stderr):
            if stream is not None:
                stream.close()
        command.process.wait()
