"""Changes of models: how they are asked for, and how their end is told."""

import asyncio
import time

import pytest
from tests.gateway.fake_service import PARTICIPANTS
from tests.gateway.packages import package

from penstock.cluster.service import Ask

WORDS = "/v1/models/default/words"
CHANGES = [
    ("POST", "/v1/models", {"content": package("other")}),
    ("PUT", f"{WORDS}?live=true", {"json": {"config": {"n": 2}}}),
    ("POST", f"{WORDS}/offline", {}),
]


def problem(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()


def test_everything_about_the_asking_reaches_the_service(ask, service):
    headers = {"idempotency-key": "k 1", "penstock-user": "Zoë".encode()}
    ask("POST", "/v1/models?timeout=2.5&wait=7", content=package(), headers=headers)
    assert service.asks == [Ask(key="k 1", user="Zoë", timeout=2.5, wait=7)]
    assert service.catalogue["default/words"].user == "Zoë"


@pytest.mark.parametrize(
    ("prefer", "wait"),
    [
        ("wait=3", 3),
        ('handling=lenient; x=y, wait = "3"', 3),
        ("respond-async", 0),
        ("respond-async, wait=3", 3),
        ("wait=soon", None),
        ("wait=-1", None),
        ("return=minimal", None),
        ("", None),
    ],
)
def test_prefer(ask, service, words, prefer, wait):
    ask("POST", f"{WORDS}/offline", headers={"prefer": prefer})
    assert service.asks[-1].wait == wait
    ask("POST", f"{WORDS}/online?wait=9", headers={"prefer": prefer})
    assert service.asks[-1].wait == 9


@pytest.mark.parametrize(
    ("query", "headers", "named"),
    [
        ("timeout=0", {}, "timeout"),
        ("timeout=nan", {}, "timeout"),
        ("timeout=soon", {}, "timeout"),
        ("wait=-1", {}, "wait"),
        ("wait=inf", {}, "wait"),
        ("dry_run=perhaps", {}, "dry_run"),
        ("", {"idempotency-key": "x" * 201}, "Idempotency-Key"),
        ("", {"idempotency-key": ""}, "Idempotency-Key"),
        ("", {"idempotency-key": "a\tb"}, "Idempotency-Key"),
        ("", {"penstock-user": "x" * 101}, "Penstock-User"),
    ],
)
@pytest.mark.parametrize(("method", "path", "options"), CHANGES)
def test_asking_for_nonsense_changes_nothing(ask, service, words, method, path, options, query, headers, named):
    service.asks.clear()
    path += ("&" if "?" in path else "?") + query
    assert named in problem(ask(method, path, headers=headers, **options), 422)["detail"]
    assert service.asks == []


@pytest.mark.parametrize(("method", "path", "options"), CHANGES)
def test_a_repeat_gets_the_first_answer(ask, service, words, method, path, options):
    before = len(service.operations_)
    answers = [ask(method, path, headers={"idempotency-key": "k"}, **options) for _ in range(2)]
    assert answers[0].status_code == answers[1].status_code < 300
    assert answers[0].json() == answers[1].json()
    assert len(service.operations_) == before + 1


@pytest.mark.parametrize(("method", "path", "options"), [*CHANGES, ("DELETE", WORDS, {})])
def test_a_dry_run_changes_nothing(ask, service, words, method, path, options):
    if method == "DELETE":
        ask("POST", f"{WORDS}/offline")
    before = (dict(service.operations_), service.revision)
    answer = ask(method, path + ("&" if "?" in path else "?") + "dry_run=true", **options)
    assert answer.status_code == 200
    assert answer.json()["possible"] is True
    assert answer.json()["nodes"] == dict.fromkeys(PARTICIPANTS, "would do it")
    assert (service.operations_, service.revision) == before


@pytest.mark.parametrize(("method", "path", "options"), CHANGES)
def test_rolled_back(ask, service, words, method, path, options):
    service.refusals = {"node-2": "disk full"}
    answer = ask(method, path, **options)
    body = problem(answer, 503)
    assert body["nodes"] == {"node-2": "disk full"}
    assert body["operation"] in service.operations_
    assert "rolled back" in body["detail"]
    assert "retry-after" not in answer.headers  # the same again would get the same answer
    operation = ask("GET", f"/v1/operations/{body['operation']}").json()
    assert (operation["phase"], operation["nodes"]["node-1"]) == ("aborted", "waiting")


def test_an_operation_that_outlives_its_request(ask, service):
    service.slow = True
    answer = ask("POST", "/v1/models?wait=0", content=package())
    assert answer.status_code == 202
    location = answer.headers["location"]
    assert answer.json()["phase"] == "preparing"
    assert answer.json() == ask("GET", location).json()
    assert ask("GET", "/v1/models").json() == []
    assert [found["id"] for found in ask("GET", "/v1/operations").json()] == [answer.json()["id"]]
    service.settle()
    assert ask("GET", location).json()["nodes"] == dict.fromkeys(PARTICIPANTS, "done")
    assert ask("GET", WORDS).status_code == 200


def test_waiting_ends_with_the_operation(calling, service):
    service.slow = True

    async def add(http):
        asking = asyncio.create_task(http.post("/v1/models", content=package(), headers={"prefer": "wait=30"}))
        while not service.waiting:
            await asyncio.sleep(0.005)
        service.settle()
        return await asking

    began = time.monotonic()
    assert calling(add).status_code == 201
    assert time.monotonic() - began < 25


def test_a_delete_that_goes_on(ask, service, words):
    ask("POST", f"{WORDS}/offline")
    service.slow = True
    answer = ask("DELETE", f"{WORDS}?wait=0")
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/operations/{answer.json()['id']}"


def test_cancelling(ask, service):
    service.slow = True
    location = ask("POST", "/v1/models?wait=0", content=package()).headers["location"]
    cancelled = ask("DELETE", location, headers={"penstock-user": "ada"})
    assert (cancelled.status_code, cancelled.json()["phase"]) == (200, "aborted")
    assert cancelled.json()["reason"] == "cancelled by ada"
    service.slow = False
    ask("POST", "/v1/models", content=package())
    done = ask("GET", "/v1/operations").json()[0]["id"]
    problem(ask("DELETE", f"/v1/operations/{done}"), 409)
    problem(ask("DELETE", "/v1/operations/none"), 404)
    problem(ask("GET", "/v1/operations/none"), 404)


@pytest.mark.parametrize("action", ["online", "offline", "rollback"])
def test_what_is_not_there_cannot_be_changed(ask, action):
    problem(ask("POST", f"/v1/models/default/none/{action}"), 404)
    problem(ask("PUT", "/v1/models/default/none", json={"config": {}}), 404)
    problem(ask("DELETE", "/v1/models/default/none"), 404)
    problem(ask("GET", "/v1/models/default/none/versions"), 404)


@pytest.mark.parametrize("body", [{"to": 0}, {"to": "x"}, {"nonsense": 1}])
def test_rollback_refuses_what_it_does_not_know(ask, words, body):
    problem(ask("POST", f"{WORDS}/rollback", json=body), 422)
