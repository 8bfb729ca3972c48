"""Every bad answer is problem+json and says what was wrong."""

import pytest
from tests.gateway.packages import package

from penstock.cluster.service import Unavailable
from penstock.errors import ClusterError, UsageError, WorkerError
from penstock.gateway.settings import GatewaySettings


def problem(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    return body


def test_unknown_path(ask):
    assert "/v1/nothing" in problem(ask("GET", "/v1/nothing"), 404)["detail"]


def test_wrong_method(ask):
    answer = ask("PUT", "/v1/nodes")
    assert "PUT" in problem(answer, 405)["detail"]
    assert "GET" in answer.headers["allow"]


def test_wrong_method_on_a_look_up(ask):
    problem(ask("POST", "/v1/state/default/words/count/a", content=b"{}"), 405)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"json": {"executors": "two"}}, "body executors"),
        ({"json": {"nonsense": 1}}, "nonsense"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, "JSON"),
    ],
)
def test_invalid_body_names_the_field(ask, words, options, named):
    assert named in problem(ask("POST", "/v1/models/default/words/online", **options), 422)["detail"]


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=99999999"])
def test_invalid_query(ask, query):
    assert "limit" in problem(ask("GET", f"/v1/log?{query}"), 422)["detail"]


def test_service_errors_have_their_status_and_words(ask, words):
    assert "penstock model list" in problem(ask("GET", "/v1/models/default/none"), 404)["detail"]
    problem(ask("POST", "/v1/models", content=package()), 409)
    problem(ask("DELETE", "/v1/models/default/words"), 409)
    detail = problem(ask("POST", "/v1/models", content=package("broken")), 422)["detail"]
    assert "step 'count'" in detail
    assert "key_by" in detail


@pytest.mark.parametrize(
    ("error", "status"),
    [(ClusterError("Redis is away"), 503), (WorkerError("it died"), 503), (UsageError("no"), 422)],
)
def test_status_by_kind_of_error(ask, service, error, status):
    async def fail():
        raise error

    service.nodes = fail
    assert problem(ask("GET", "/v1/nodes"), status)["detail"] == str(error)


def test_unavailable_says_when_to_come_back_and_why_per_node(ask, service):
    async def fail():
        raise Unavailable("it moves", retry_after=2.5, nodes={"node-2": "restarting"})

    service.nodes = fail
    answer = ask("GET", "/v1/nodes")
    body = problem(answer, 503)
    assert answer.headers["retry-after"] == "3"
    assert body["retry_after"] == 2.5
    assert body["nodes"] == {"node-2": "restarting"}


def test_a_fault_shows_its_message_and_no_trace(ask, service, caplog):
    async def fail():
        raise ZeroDivisionError("by zero")

    service.nodes = fail
    answer = ask("GET", "/v1/nodes")
    assert "ZeroDivisionError: by zero" in problem(answer, 500)["detail"]
    assert "Traceback" not in answer.text
    assert any(record.exc_info for record in caplog.records)


def test_body_limit_counts_what_arrives(ask):
    settings = GatewaySettings(max_body=100)
    path = "/v1/models/default/words/online"
    assert "100 bytes" in problem(ask("POST", path, settings, json={"config": {"x": "x" * 200}}), 413)["detail"]

    async def pieces():
        for _ in range(50):
            yield b"123456789\n"

    problem(ask("POST", path, settings, content=pieces(), headers={"content-type": "application/json"}), 413)
