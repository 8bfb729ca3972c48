"""Pushing records: 200 means retained, 429 not now, anything else nothing was taken."""

import pytest

from penstock.gateway.settings import GatewaySettings

PATH = "/v1/streams/default/words/in"
NDJSON = {"content-type": "application/x-ndjson"}

pytestmark = pytest.mark.usefixtures("words")


@pytest.mark.parametrize("kind", ["application/x-ndjson", "application/jsonl", "text/plain; charset=utf-8", None])
@pytest.mark.parametrize("body", [b'"a"\n"b"\n', b'"a"\n"b"', b'"a"\r\n\n"b"\r\n\n'])
def test_ndjson(ask, service, kind, body):
    answer = ask("POST", PATH, content=body, headers={} if kind is None else {"content-type": kind})
    assert (answer.status_code, answer.json()) == (200, {"accepted": 2})
    assert service.records == ["a", "b"]


def test_json_array(ask, service):
    assert ask("POST", PATH, json=["a", 1, "ü"]).json() == {"accepted": 3}
    assert service.records == ["a", 1, "ü"]


@pytest.mark.parametrize("body", [b"", b"\n\n"])
def test_no_records(ask, body):
    assert ask("POST", PATH, content=body).json() == {"accepted": 0}


@pytest.mark.parametrize(
    ("body", "line"),
    [(b'"a"\n{bad\n"c"\n', 2), (b"nope\n", 1), (b'"a"\n\n"\xff"\n', 3), (b'"a" "b"\n', 1), (b'1\n2\n{"a": 1', 3)],
)
def test_a_malformed_line_is_named_and_nothing_taken(ask, service, body, line):
    answer = ask("POST", PATH, content=body, headers=NDJSON)
    assert answer.status_code == 422
    assert answer.json()["line"] == line
    assert f"line {line} is not JSON" in answer.json()["detail"]
    assert service.records == []


@pytest.mark.parametrize(
    ("body", "named"), [(b'["a",', "not JSON"), (b'{"a": 1}', "object"), (b'"a"', "string"), (b"null", "null")]
)
def test_a_json_body_must_be_an_array(ask, body, named):
    answer = ask("POST", PATH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert named in answer.json()["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "image/png"},
        {"content-type": "application/x-ndjson; charset=latin-1"},
        {"content-encoding": "gzip", **NDJSON},
    ],
)
def test_media_types_that_are_not_taken(ask, headers):
    assert ask("POST", PATH, content=b'"a"\n', headers=headers).status_code == 415


def test_no_room_is_429_with_retry_after(ask, service):
    service.room = 1
    answer = ask("POST", PATH, json=["a", "b"])
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["retry_after"] == 0.05
    assert service.records == []


def test_a_push_above_the_limit_is_413_while_it_arrives(ask, service):
    sent = 0

    async def pieces():
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b'"0123456789"\n'

    answer = ask("POST", PATH, GatewaySettings(max_push=100), content=pieces())
    assert answer.status_code == 413
    assert "100 bytes" in answer.json()["detail"]
    assert service.records == []
    assert sent < 1000


@pytest.mark.parametrize(
    "sender",
    [
        {"headers": {"penstock-client": "c", "penstock-seq": "7"}},
        {"params": {"client": "c", "seq": "7"}},
        {"headers": {"idempotency-key": "4711"}},
    ],
)
def test_a_repeat_is_taken_once(calling, service, sender):
    async def twice(http):
        return [await http.post(PATH, json=["a"], **sender) for _ in range(2)]

    assert [answer.status_code for answer in calling(twice)] == [200, 200]
    assert service.records == ["a"]


@pytest.mark.parametrize(
    "params", [{"client": "c"}, {"seq": "1"}, {"client": "c", "seq": "-1"}, {"client": "c", "seq": "x"},
               {"client": "c", "seq": "٣"}, {"client": "c", "seq": str(2**63)}],
)  # fmt: skip
def test_half_a_sender_is_refused(ask, params):
    answer = ask("POST", PATH, json=["a"], params=params)
    assert answer.status_code == 422
    assert "seq" in answer.json()["detail"]


def test_unknown_and_offline(ask, calling):
    assert ask("POST", "/v1/streams/default/none/in", json=["a"]).status_code == 404
    assert ask("POST", "/v1/streams/default/words/none", json=["a"]).status_code == 404
    assert ask("POST", "/v1/models/default/words/offline").status_code == 200
    assert ask("POST", PATH, json=["a"]).status_code == 409


def test_addresses_of_lanes(ask, service):
    service.lanes, service.urls = ["node-1", "node-2", "node-1"], {"node-1": "http://a:1", "node-2": "http://b:2"}
    found = ask("GET", PATH).json()
    assert [(lane["lane"], lane["executor"], lane["node"], lane["url"]) for lane in found["lanes"]] == [
        (0, "0.0", "node-1", "http://a:1"),
        (1, "0.1", "node-2", "http://b:2"),
        (2, "0.2", "node-1", "http://a:1"),
    ]
    assert (found["cluster"], found["nodes"]) == ("fake", service.urls)
    assert ask("GET", "/v1/streams/default/words/none").status_code == 404
    assert ask("GET", "/v1/streams/default/none/in").status_code == 404


@pytest.mark.parametrize("to", [{"headers": {"penstock-lane": "2"}}, {"params": {"lane": "2"}}])
def test_a_push_names_its_lane(ask, service, to):
    service.lanes = ["node-1"] * 3
    assert ask("POST", PATH, json=["a"], **to).status_code == 200
    assert service.pushes == [(2, None, None, 1)]


@pytest.mark.parametrize("number", ["-1", "x", "٣", "9" * 5000])
def test_a_lane_is_a_number(ask, number):
    answer = ask("POST", PATH, json=["a"], params={"lane": number})
    assert answer.status_code == 422
    assert "lane" in answer.json()["detail"]


def test_what_is_meant_for_another_cluster_is_refused(ask, service):
    assert ask("POST", PATH, json=["a"], headers={"penstock-cluster": "other"}).status_code == 421
    assert service.records == []
    assert ask("POST", PATH, json=["a"], headers={"penstock-cluster": "fake"}).status_code == 200
