"""Ports in use, brokers and databases that nobody answers at, a Redis that is too old: an error in bounded time."""

import socket

import pytest
from tests.bad_input.conftest import check_readable
from tests.bad_input.fake_redis import serving
from tests.cli.conftest import free_ports

NOBODY = "127.0.0.1:1"
SERVERS = [["up", "--nodes", "1"], ["node"]]


@pytest.fixture
def fails(started):
    """Start a command that has to fail, in bounded time and with nothing on standard output."""

    def start(*args, code=1, timeout=40, **options):
        command = started(*args, **options)

        def ended():
            status, out, err = command.end(timeout)
            check_readable(err)
            assert (status, out) == (code, ""), err
            assert err.startswith("error: ")
            assert "  -> " in err
            return err

        return ended

    return start


@pytest.mark.parametrize("server", [*SERVERS, ["demo"]], ids=lambda args: args[0])
def test_a_port_in_use(fails, server):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ["--redis", f"redis://{NOBODY}"] if server == ["node"] else []
        err = fails(*server, "--port", port, *options, code=2)()
    assert f"port {port} on 127.0.0.1 cannot be used: Address already in use" in err
    assert "choose another with --port" in err


@pytest.mark.parametrize("server", SERVERS, ids=lambda args: args[0])
def test_a_redis_that_is_too_old(fails, server):
    version = "6.0.16"
    with serving(version) as url:
        err = fails(*server, "--port", free_ports(1), "--redis", url)()
    assert f"is Redis {version}; 6.2 or later is needed" in err
    assert "upgrade it" in err


def test_a_redis_that_cannot_be_used(fails):
    port = free_ports(1)
    with serving(None) as silent, socket.create_server(("127.0.0.1", 0)) as deaf:
        ended = {
            "no Redis answers at 127.0.0.1:1": fails("up", "--port", port, "--redis", f"redis://{NOBODY}"),
            "Timeout reading from": fails("up", "--port", port + 10, "--redis", silent),
            "no Redis answers at": fails(
                "up", "--port", port + 20, "--redis", f"redis://127.0.0.1:{deaf.getsockname()[1]}"
            ),
            "no Redis answers at nowhere.invalid:6379": fails(
                "up", "--port", port + 30, "--redis", "redis://nowhere.invalid"
            ),
            "is not a Redis URL": fails("up", "--port", port + 40, "--redis", "ftp://x", code=2),
        }
        for said, end in ended.items():
            assert said in end()


UNREACHABLE = {
    "ps.mqtt('mqtt://127.0.0.1:1', 't')": "the MQTT broker 127.0.0.1:1 could not be reached for 10 s",
    "ps.nats('nats://127.0.0.1:1', 's', deadline=1)": "127.0.0.1:1 could not be reached for 1 s: Connection refused",
    "ps.redis_stream('redis://127.0.0.1:1', 's', deadline=1)": "Redis at 127.0.0.1:1 could not be used for 1 s",
    "ps.sql('postgresql+psycopg://postgres@127.0.0.1:1/test', 't', deadline=1)": "could not be read for 1 s",
    "ps.sql('sqlite:////none/there.db', 't', deadline=1)": "unable to open database file",
}
UNREACHABLE_SINKS = {
    "ps.http('http://127.0.0.1:1/x', deadline=1)": "did not succeed for 1 s: ConnectError",
    "ps.sql('mysql+pymysql://root@127.0.0.1:1/test', 't', deadline=1)": "could not be used for 1 s",
}  # fmt: skip


def test_sources_and_sinks_that_nobody_answers_at(fails, write):
    ended = {}
    for number, (source, said) in enumerate(UNREACHABLE.items()):
        path = write(source, sink="ps.collect()", name=f"source{number}.py")
        ended[source] = (fails("run", path), said)
    for number, (sink, said) in enumerate(UNREACHABLE_SINKS.items()):
        path = write("ps.iterable([{'a': 1}])", sink=sink, name=f"sink{number}.py")
        ended[f"to {sink}"] = (fails("run", path), said)
    for what, (end, said) in ended.items():
        assert said in end(), what


def test_no_cluster(penstock, folder):
    (folder / "records").write_text("1\n")
    for args in (["nodes"], ["model", "list"], ["top", "--once"], ["events"], ["push", "a/b", "records"]):
        result = penstock(*args, "--url", f"http://{NOBODY}")
        assert result.exit_code == 1
        assert f"no Penstock node answers at http://{NOBODY}" in result.stderr
        assert "penstock up" in result.stderr
    for url in ("hello world", "ftp://x", "http://"):
        result = penstock("nodes", "--url", url)
        assert result.exit_code == 2
        assert "an address looks like" in result.stderr
