"""The clients: the same conversations with blocking I/O and with asyncio, against a gateway without sockets."""

import asyncio
import inspect
import threading

import httpx
import pytest
from tests.gateway.fake_service import PARTICIPANTS, FakeService
from tests.gateway.packages import package, write_flow

from penstock.client import (
    AsyncClient,
    Busy,
    Client,
    ClientError,
    Conflict,
    NotFound,
    Refused,
    Rejected,
    RolledBack,
    Unfinished,
    Unreachable,
    calls,
    changes,
)
from penstock.client.conversation import Pause, Session, Work
from penstock.client.follow import EventParser
from penstock.errors import PenstockError, UsageError
from penstock.gateway.app import create_app
from penstock.gateway.settings import GatewaySettings


class Clockwork:
    """A clock that moves when a conversation pauses."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def drive(conversation, answers, clock):
    """Run a conversation with prepared answers; gives (result, calls, pauses)."""
    sent, pauses, answer = [], [], None
    answers = iter(answers)
    while True:
        try:
            step = conversation.send(answer)
        except StopIteration as end:
            return end.value, sent, pauses
        if isinstance(step, Pause):
            pauses.append(step.seconds)
            clock.now += step.seconds
            answer = None
        elif isinstance(step, Work):
            answer = step.run()
        else:
            sent.append(step)
            answer = next(answers)


def session(clock, deadline=10.0):
    return Session("http://127.0.0.1:1", deadline=deadline, clock=clock)


def busy(seconds):
    return httpx.Response(429, json={"detail": "no room", "retry_after": seconds}, headers={"retry-after": "1"})


BROKEN = httpx.ReadError("reset")


def test_retries_as_the_server_asks():
    clock = Clockwork()
    result, sent, pauses = drive(calls.nodes(session(clock)), [busy(0.5), busy(2), httpx.Response(200, json=[])], clock)
    assert result == []
    assert pauses == [0.5, 2]
    assert len(sent) == 3


@pytest.mark.parametrize(("header", "pause"), [("3", 3.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 1.0)])
def test_retry_after_from_the_header_alone(header, pause):
    clock = Clockwork()
    answers = [httpx.Response(503, headers={"retry-after": header}), httpx.Response(200, json=[])]
    assert drive(calls.nodes(session(clock)), answers, clock)[2] == [pause]


def test_busy_when_the_deadline_has_come():
    clock = Clockwork()
    with pytest.raises(Busy, match="no room") as caught:
        drive(calls.nodes(session(clock, deadline=5.0)), [busy(2)] * 10, clock)
    assert clock.now == 4
    assert caught.value.status == 429


def test_a_broken_connection_is_retried_only_when_that_does_no_harm():
    clock = Clockwork()
    assert drive(calls.nodes(session(clock)), [BROKEN, BROKEN, httpx.Response(200, json=[])], clock)[0] == []
    with pytest.raises(Unreachable, match="reset"):
        drive(calls.health(session(clock)), [BROKEN], clock)
    with pytest.raises(Unreachable):
        drive(calls.nodes(session(clock, deadline=1.0)), [BROKEN] * 100, clock)


def test_a_refused_connection_is_retried_after_an_answer():
    clock = Clockwork()
    shared = session(clock)
    refused, good = httpx.ConnectError("refused"), httpx.Response(200, json=[])
    with pytest.raises(Unreachable):
        drive(calls.nodes(shared), [refused], clock)
    assert clock.now == 0
    drive(calls.nodes(shared), [good], clock)
    assert len(drive(calls.nodes(shared), [refused, refused, good], clock)[1]) == 3


def test_a_change_is_sent_again_with_the_same_key():
    clock = Clockwork()
    later = httpx.Response(503, json={"detail": "it restarts", "retry_after": 1}, headers={"retry-after": "1"})
    done = httpx.Response(200, json={"name": "default/m", "status": "offline"})
    said = []
    _, sent, pauses = drive(
        changes.rollback(session(clock), "m", on_progress=said.append), [BROKEN, later, done], clock
    )
    assert said[-1] == "it restarts"
    assert len({call.headers["idempotency-key"] for call in sent}) == 1
    assert [call.body for call in sent] == [b'{"to":null}'] * 3
    assert pauses[-1] == 1
    (_, (again,), _) = drive(changes.rollback(session(clock), "m"), [done], clock)
    assert again.headers["idempotency-key"] != sent[0].headers["idempotency-key"]
    (_, (own,), _) = drive(changes.rollback(session(clock), "m", key="mine", timeout=90), [done], clock)
    assert (own.headers["idempotency-key"], own.query["timeout"]) == ("mine", "90")


def test_what_was_rolled_back_is_not_asked_for_again():
    clock = Clockwork()
    problem = {"detail": "add of g/m was rolled back", "nodes": {"node-2": "disk full"}, "operation": "op-1"}
    answer = httpx.Response(503, json=problem, headers={"retry-after": "1"})
    with pytest.raises(RolledBack) as caught:
        drive(changes.offline(session(clock), "m"), [answer], clock)
    error = caught.value
    assert (error.operation, error.nodes, error.detail) == ("op-1", {"node-2": "disk full"}, problem["detail"])
    assert str(error) == "add of g/m was rolled back\n  node-2: disk full"


def going_on(phase="preparing", settled=False, status=200, **nodes):
    view = {"id": "op/1", "kind": "offline", "model": "g/m", "phase": phase, "settled": settled, "reason": "why"}
    return httpx.Response(status, json=view | {"nodes": nodes})


def test_an_operation_is_looked_at_until_it_has_ended():
    clock, said = Clockwork(), []
    answers = [
        going_on(status=202, a="waiting", b="waiting"),
        going_on(a="ready", b="waiting"),
        BROKEN,
        going_on("committing", a="done", b="ready"),
        going_on("finished", settled=True, a="done", b="done"),
        httpx.Response(200, json={"name": "g/m", "status": "offline"}),
    ]
    result, sent, _ = drive(changes.offline(session(clock), "g/m", on_progress=said.append), answers, clock)
    assert result["status"] == "offline"
    assert [call.path for call in sent[1:]] == ["/v1/operations/op%2F1"] * 4 + ["/v1/models/g/m"]
    assert said == [
        "offline g/m: preparing, waiting for a, b",
        "offline g/m: preparing, waiting for b",
        "offline g/m: committing, waiting for b",
    ]


def test_an_operation_that_is_rolled_back_later():
    clock = Clockwork()
    answers = [going_on(status=202, a="waiting"), going_on("aborted", settled=True, a="waiting", b="disk full")]
    with pytest.raises(RolledBack, match="rolled back: why") as caught:
        drive(changes.delete_model(session(clock), "m"), answers, clock)
    assert (caught.value.nodes, caught.value.operation) == ({"b": "disk full"}, "op/1")


def test_an_operation_that_does_not_end():
    clock = Clockwork()
    answers = [going_on(status=202, a="waiting"), *[going_on(a="waiting")] * 500]
    with pytest.raises(Unfinished, match="waiting for a") as caught:
        drive(changes.offline(session(clock), "m", deadline=5), answers, clock)
    assert 3 < clock.now <= 5
    assert caught.value.operation == "op/1"


def test_not_waiting_gives_the_operation():
    clock = Clockwork()
    result, (call,), _ = drive(changes.offline(session(clock), "m", wait=False), [going_on(status=202)], clock)
    assert result["id"] == "op/1"
    assert call.query["wait"] == "0"
    result, _, _ = drive(changes.delete_model(session(clock), "m", wait=False), [going_on(status=202)], clock)
    assert result["id"] == "op/1"


def model_view(status, error=""):
    executors = [{"node": "node-2", "state": "starting"}] if status == "starting" else []
    view = {"name": "g/m", "status": status, "error": error, "executors": executors}
    return httpx.Response(200, json=view)


def test_online_returns_when_it_runs():
    clock, said = Clockwork(), []
    answers = [model_view("starting"), model_view("starting"), model_view("online")]
    result, sent, _ = drive(changes.online(session(clock), "g/m", on_progress=said.append), answers, clock)
    assert result["status"] == "online"
    assert [call.method for call in sent] == ["POST", "GET", "GET"]
    assert said == ["g/m is starting: waiting for node-2"] * 2
    answers = [model_view("starting"), model_view("failed", "division by zero")]
    with pytest.raises(ClientError, match="division by zero"):
        drive(changes.online(session(clock), "g/m"), answers, clock)
    with pytest.raises(Unfinished, match="still starting"):
        drive(changes.online(session(clock), "g/m", deadline=3), [model_view("starting")] * 99, clock)


def test_an_update_changes_something():
    with pytest.raises(UsageError, match="package or the configuration"):
        drive(changes.update_model(session(Clockwork()), "m"), [], Clockwork())


def test_a_package_is_removed_after_the_upload(tmp_path):
    clock = Clockwork()
    flow = write_flow(tmp_path)
    conversation = changes.add_model(session(clock), flow)
    work = next(conversation)
    call = conversation.send(work.run())
    (path,) = call.body
    assert path.read_bytes() == package()
    with pytest.raises(Unreachable):
        conversation.throw(Unreachable("gone"))
    assert not path.parent.exists()


def test_a_node_that_does_not_answer_in_time_is_not_taken_for_absent():
    clock = Clockwork()
    with pytest.raises(Unreachable, match="did not answer in time") as caught:
        drive(calls.health(session(clock)), [httpx.ReadTimeout("timed out")], clock)
    assert "penstock up" not in str(caught.value)


def test_503_without_retry_after_is_final():
    clock = Clockwork()
    with pytest.raises(ClientError) as caught:
        drive(calls.nodes(session(clock)), [httpx.Response(503, json={"detail": "gone"})], clock)
    assert str(caught.value) == "gone"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, Refused),
        (403, Refused),
        (404, NotFound),
        (409, Conflict),
        (422, Rejected),
        (413, Rejected),
        (500, ClientError),
    ],
)
def test_statuses_are_errors_with_the_problems_details(status, kind):
    clock = Clockwork()
    problem = {"detail": "it is so", "nodes": {"node-2": "disk full"}, "line": 3}
    with pytest.raises(kind) as caught:
        drive(calls.nodes(session(clock)), [httpx.Response(status, json=problem)], clock)
    error = caught.value
    assert isinstance(error, PenstockError)
    assert error.status == status
    assert error.problem["line"] == 3
    assert error.nodes == {"node-2": "disk full"}
    assert str(error) == "it is so\n  node-2: disk full"


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b""])
def test_an_answer_that_is_no_problem(body):
    clock = Clockwork()
    with pytest.raises(Rejected, match="418"):
        drive(calls.nodes(session(clock)), [httpx.Response(418, content=body)], clock)


def test_an_answer_that_is_not_a_nodes():
    clock = Clockwork()
    with pytest.raises(ClientError, match="not what a Penstock node sends"):
        drive(calls.nodes(session(clock)), [httpx.Response(200, content=b"<html>")], clock)


@pytest.mark.parametrize("stream", ["in", "", "a/b/c/d", "m/", "/in"])
def test_bad_streams(stream):
    with pytest.raises(UsageError, match="not a stream"):
        calls.stream_path(stream)


@pytest.mark.parametrize(
    ("name", "path"), [("m", "default/m"), ("g/m", "g/m"), ("g/ü m", "g/%C3%BC%20m"), ("..", "default/%2E%2E")]
)
def test_model_paths(name, path):
    assert calls.model_path(name) == path


@pytest.mark.parametrize("name", ["", "/m", "a/b/c", "m/"])
def test_bad_models(name):
    with pytest.raises(UsageError, match="not a model"):
        calls.model_path(name)


@pytest.mark.parametrize("url", ["127.0.0.1:8700", "", "ftp://x", "http://", "nonsense"])
def test_bad_addresses(url):
    with pytest.raises(UsageError, match="not an address"):
        Client(url)


def test_nobody_there():
    with Client("http://127.0.0.1:1", deadline=0.2) as client, pytest.raises(Unreachable, match="penstock up"):
        client.nodes()


def test_event_parser():
    parser = EventParser()
    lines = [": hello", "", "id: 7", "event: x", 'data: {"a":', "data: 1}", "", "id:8", "data:{}", ""]
    assert [event for event in map(parser.feed, lines) if event is not None] == [{"a": 1}, {}]
    assert parser.last_id == "8"
    assert parser.request("/v1/events", {"model": "m"})["headers"]["last-event-id"] == "8"


# ---- both drivers against a real application ------------------------------------------------------------------------


class InLoop(httpx.BaseTransport):
    """Lets the blocking client call an ASGI application."""

    def __init__(self, app):
        self.app = app

    def handle_request(self, request):
        async def ask():
            request.stream = httpx.ByteStream(request.read())
            answer = await httpx.ASGITransport(self.app).handle_async_request(request)
            return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())

        return asyncio.run(ask())


class Blocking:
    """Calls methods of `Client`."""

    def __init__(self, app, **options):
        self.client = Client(transport=InLoop(app), **options)

    def __getattr__(self, name):
        return getattr(self.client, name)


class Awaiting:
    """Calls methods of `AsyncClient`, each in a loop of its own."""

    def __init__(self, app, **options):
        self.app, self.options = app, options

    def __getattr__(self, name):
        def call(*args, **kwargs):
            async def ask():
                async with AsyncClient(transport=httpx.ASGITransport(self.app), **self.options) as client:
                    return await getattr(client, name)(*args, **kwargs)

            return asyncio.run(ask())

        return call


@pytest.fixture(params=[Blocking, Awaiting])
def connect(request):
    return request.param


def test_everything_that_a_client_can_do(connect, tmp_path):
    service = FakeService()
    client = connect(create_app(service), user="ada")
    assert client.health()["node"] == "node-1"
    assert client.ready() is True
    assert client.nodes()[0]["leader"]
    flow = write_flow(tmp_path)
    assert client.add_model(flow, name="w")["name"] == "default/w"
    assert client.online("w", config={"n": 1}, executors=2)["config"] == {"n": 1}
    assert client.push("w/in", ["a", "b", "a", "c/d"]).accepted == 4
    assert client.state("w", "count", "a") == 2
    assert client.state("w", "count", "c/d") == 1
    service.state[5] = service.state[("x", 5)] = service.state[".."] = "found"
    assert [client.state("w", "count", key) for key in (5, ("x", 5), "..")] == ["found"] * 3
    page = client.list_state("w", "count", limit=3)
    assert len(page["items"]) == 3
    assert client.list_state("w", "count", cursor=page["cursor"])["items"]
    assert client.placement("default/w")[0]["load"] == {"node-1": 2}
    assert client.metrics()["models"][0]["name"] == "default/w"
    assert client.log("default/w")[0]["kind"] == "model.added"
    assert client.results("w", limit=1) == ["c/d"]
    service.log_entry("model.log", "hello", "default/w")
    assert [entry["text"] for entry in client.logs("w")] == ["hello"]
    assert [model["name"] for model in client.models()] == ["default/w"]
    assert client.offline("w")["status"] == "offline"
    assert {ask.user for ask in service.asks} == {"ada"}
    assert client.delete_model("w") is None
    with pytest.raises(NotFound):
        client.model("w")
    service.reasons = ["not yet"]
    assert client.ready() is False


def test_packages_and_their_versions(connect, tmp_path):
    service = FakeService()
    client = connect(create_app(service))
    client.add_model(write_flow(tmp_path))
    wheel = tmp_path / "words-2.0-py3-none-any.whl"
    wheel.write_bytes(package(version="2.0"))
    assert client.update_model("words", str(wheel))["version"] == "2.0"
    assert client.update_model("words", config={"n": 2})["config"] == {"n": 2}
    write_flow(tmp_path, version="3.0")
    found = client.update_model("words", tmp_path / "words.py", config={"n": 3})
    assert (found["version"], found["config"]) == ("3.0", {"n": 3})
    versions = client.versions("words")
    assert [(v["version"], v["config"], v["current"]) for v in versions] == [
        ("3.0", {"n": 3}, True), ("2.0", {"n": 2}, False), ("2.0", {}, False), ("1.0", {}, False),
    ]  # fmt: skip
    assert client.rollback("words", versions[-1]["generation"])["version"] == "1.0"
    client.online("words", recovery="passive")
    with pytest.raises(Conflict):
        client.update_model("words", config={})
    assert client.update_model("words", wheel, live=True)["version"] == "2.0"


def test_a_package_that_is_made_already(connect, tmp_path):
    from penstock.model.package import build

    made = build(write_flow(tmp_path), tmp_path / "out")
    assert connect(create_app(FakeService())).add_model(made)["digest"] == made.digest
    assert made.path.exists()


def test_a_source_that_does_not_build(connect, tmp_path):
    service = FakeService()
    client = connect(create_app(service))
    with pytest.raises(UsageError, match="nowhere"):
        client.add_model(tmp_path / "nowhere.py")
    with pytest.raises(Rejected, match="key_by"):
        client.add_model(write_flow(tmp_path, "broken"))
    assert service.catalogue == {}


def test_plans_and_operations(connect, tmp_path):
    service = FakeService()
    client = connect(create_app(service))
    plan = client.add_model(write_flow(tmp_path), dry_run=True)
    assert (plan["kind"], plan["possible"], set(plan["nodes"])) == ("add", True, set(PARTICIPANTS))
    assert service.operations_ == {}
    service.slow = True
    begun = client.add_model(write_flow(tmp_path), wait=False)
    assert client.operation(begun["id"]) == begun
    assert client.operations() == [begun]
    assert client.cancel_operation(begun["id"])["phase"] == "aborted"
    with pytest.raises(NotFound):
        client.operation("none")
    with pytest.raises(Unfinished) as caught:
        client.add_model(write_flow(tmp_path), deadline=0.05)
    assert client.operation(caught.value.operation)["phase"] == "preparing"
    service.slow = False
    service.refusals = {"node-2": "disk full"}
    with pytest.raises(RolledBack) as caught:
        client.add_model(write_flow(tmp_path))
    assert caught.value.nodes == {"node-2": "disk full"}


def test_logs_are_followed(tmp_path):
    service = FakeService()
    app = create_app(service)
    Blocking(app).add_model(write_flow(tmp_path))
    service.log_entry("model.log", "one", "default/words")

    async def main():
        async with AsyncClient(transport=httpx.ASGITransport(app)) as client:
            service.close()
            with pytest.raises(NotFound):
                async for _ in client.follow_logs("none"):
                    pass
            return [entry["text"] async for entry in client.follow_logs("words", after="001")]

    assert asyncio.run(main()) == []
    assert [entry["text"] for entry in Blocking(app).client.follow_logs("words", after="001")] == []


def test_who_cancels_waits_for_the_packing(tmp_path):
    """A thread cannot be interrupted, and its files must not outlive the call."""
    began, release, seen = threading.Event(), threading.Event(), []

    def slow():
        began.set()
        release.wait(20)
        seen.append("end")

    def conversation():
        try:
            yield Work(slow)
        finally:
            seen.append("closed")

    async def main():
        async with AsyncClient(transport=httpx.ASGITransport(create_app(FakeService()))) as client:
            driving = asyncio.create_task(client.drive(conversation()))
            await asyncio.to_thread(began.wait)
            driving.cancel()
            await asyncio.sleep(0.01)
            assert not driving.done()
            release.set()
            with pytest.raises(asyncio.CancelledError):
                await driving

    asyncio.run(main())
    assert seen == ["end", "closed"]


def test_the_login_name_is_told_if_it_is_known(monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "ada\x07" + "x" * 200)
    with Client() as client:
        assert client.session.user == ("ada" + "x" * 200)[:100]

    def unknown():
        raise KeyError("uid")

    monkeypatch.setattr("getpass.getuser", unknown)
    with Client() as client:
        assert client.session.user == ""


def test_token(connect):
    app = create_app(FakeService(), GatewaySettings(token="s3cret"))
    assert connect(app, token="s3cret").nodes()
    with pytest.raises(Refused, match="PENSTOCK_TOKEN"):
        connect(app).nodes()


def test_the_pressure_ends_and_the_push_goes_through(connect, tmp_path):
    service = FakeService(room=0)
    app = create_app(service)
    client = connect(app)
    client.add_model(write_flow(tmp_path))
    client.online("words")
    refused = service.push
    tries = 0

    async def push(*args):
        nonlocal tries
        tries += 1
        service.room = 0 if tries < 3 else 10
        return await refused(*args)

    service.push = push
    assert client.push("words/in", ["a"]).accepted == 1
    assert tries == 3
    assert service.records == ["a"]


def test_both_clients_have_the_same_documented_methods():
    for name in ("push", "push_ndjson", "state", "online", "add_model", "nodes", "log", "follow", "follow_logs"):
        assert inspect.getdoc(getattr(Client, name))
        assert inspect.getdoc(getattr(AsyncClient, name))
