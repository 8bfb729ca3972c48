from __future__ import annotations

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from penstock import codec
from penstock.connectors import http
from penstock.errors import ConnectorError, UsageError
from penstock.flow.batch import Keyed


@pytest.fixture
def server():
    """A receiver that answers with `server.answers` in turn (then 200) and knows idempotency keys."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers = server.answers.pop(0) if server.answers else (200, {})
            server.keys.append(self.headers["Idempotency-Key"])
            if status == "hang up":
                self.connection.close()
                return
            if status == 200:
                server.bodies.setdefault(self.headers["Idempotency-Key"], body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": "2", "Connection": "close"}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    server.answers, server.keys, server.bodies = [], [], {}
    server.url = f"http://127.0.0.1:{server.server_port}/in"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def received(server):
    return [json.loads(line) for body in server.bodies.values() for line in body.splitlines()]


def test_batches_of_json_lines(server, ctx):
    writer = http(server.url, batch_records=2, headers={"X-Token": "t"}).open(ctx)
    writer.write([1, Keyed("a", 2), "three"])
    assert received(server) == [1, {"key": "a", "value": 2}]
    writer.flush()
    assert received(server)[2:] == ["three"]
    writer.close()
    assert len(set(server.keys)) == 2


@pytest.mark.parametrize("answer", [(503, {}), (429, {"Retry-After": "0"}), ("hang up", {})])
def test_repeats_carry_the_same_key(server, ctx, answer):
    server.answers = [answer, answer]
    writer = http(server.url).open(ctx)
    writer.write([1])
    writer.close()
    assert len(server.keys) == 3
    assert len(set(server.keys)) == 1
    assert received(server) == [1]


def test_a_refusal_names_the_status_and_is_not_repeated(server, ctx):
    server.answers = [(422, {})]
    writer = http(server.url).open(ctx)
    writer.write([1])
    with pytest.raises(ConnectorError, match="answered status 422"):
        writer.flush()
    writer.abort()
    assert len(server.keys) == 1


def test_the_deadline_ends_the_repeats(ctx):
    writer = http("http://127.0.0.1:1/in", deadline=0.3).open(ctx)
    writer.write([1])
    with pytest.raises(ConnectorError, match=r"127\.0\.0\.1:1/in did not succeed for 0.3 s: ConnectError"):
        writer.flush()
    writer.abort()


def test_with_checkpoints_requests_are_sent_at_commit_with_keys_that_survive(server, ctx):
    ctx = replace(ctx, checkpointed=True)
    sink = http(server.url, batch_records=2)
    writer = sink.open(ctx)
    writer.write([1, 2, 3])
    pending = codec.loads(codec.dumps(writer.prepare(1)))
    assert server.keys == []
    writer.commit(pending)
    writer.commit(pending)
    assert received(server) == [1, 2, 3]
    writer.abort()
    restored = sink.open(ctx)
    restored.recover([pending])
    assert server.keys[:2] == server.keys[2:]
    restored.write([4])
    restored.commit(restored.prepare(2))
    restored.write([5])
    restored.close()
    assert received(server) == [1, 2, 3, 4, 5]
    fresh = sink.open(ctx)
    fresh.write([6])
    fresh.commit(fresh.prepare(1))
    fresh.close()
    assert received(server)[-1] == 6


def test_impossible_options():
    with pytest.raises(UsageError, match="not an http"):
        http("ftp://x")
    with pytest.raises(UsageError, match="greater than 0"):
        http("http://x", batch_records=0)
