"""Models, nodes, placement, probes, metrics, events, documentation."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.gateway.fake_service import FakeService
from tests.gateway.packages import package

from penstock.gateway.events import as_events


def test_the_life_of_a_model(ask, service):
    added = ask("POST", "/v1/models?name=w", content=package())
    assert added.status_code == 201, added.text
    assert added.headers["location"] == "/v1/models/default/w"
    assert (added.json()["status"], added.json()["version"]) == ("offline", "1.0")
    online = ask("POST", "/v1/models/default/w/online", json={"config": {"n": 3}, "executors": 2}).json()
    assert (online["status"], online["config"], len(online["executors"])) == ("online", {"n": 3}, 2)
    assert ask("POST", "/v1/models/default/w/online").status_code == 409
    assert [model["name"] for model in ask("GET", "/v1/models").json()] == ["default/w"]
    assert ask("PUT", "/v1/models/default/w", content=package(version="2.0")).status_code == 409
    assert ask("POST", "/v1/models/default/w/offline").json()["status"] == "offline"
    assert ask("PUT", "/v1/models/default/w", content=package(version="2.0")).json()["version"] == "2.0"
    assert ask("PUT", "/v1/models/default/w", json={"config": {"n": 5}}).json()["config"] == {"n": 5}
    assert [v["version"] for v in ask("GET", "/v1/models/default/w/versions").json()] == ["2.0", "2.0", "1.0"]
    oldest = service.history["default/w"][-1].generation
    assert ask("POST", "/v1/models/default/w/rollback", json={"to": oldest}).json()["version"] == "1.0"
    assert ask("POST", "/v1/models/default/w/rollback", json={"to": 9999}).status_code == 409
    assert ask("POST", "/v1/models/default/w/rollback").json()["version"] == "2.0"
    deleted = ask("DELETE", "/v1/models/default/w")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert ask("GET", "/v1/models/default/w").status_code == 404


def test_online_without_a_body(ask):
    ask("POST", "/v1/models", content=package())
    assert ask("POST", "/v1/models/default/words/online").json()["config"] == {}


def test_online_with_a_recovery_class(ask):
    ask("POST", "/v1/models", content=package())
    assert ask("POST", "/v1/models/default/words/online", json={"recovery": "passive"}).json()["recovery"] == "passive"


@pytest.mark.parametrize(
    "body", [{"executors": 0}, {"executors": 1000}, {"config": []}, {"recovery": "maybe"}, {"nonsense": 1}]
)
def test_online_refuses_what_it_does_not_know(ask, body):
    ask("POST", "/v1/models", content=package())
    assert ask("POST", "/v1/models/default/words/online", json=body).status_code == 422


def test_nodes(ask):
    (node,) = ask("GET", "/v1/nodes").json()
    assert (node["id"], node["live"], node["leader"]) == ("node-1", True, True)


def test_placement(ask, words):
    assert ask("GET", "/v1/placement").json()[0]["assignment"] == {"0.0": "node-1"}
    assert ask("GET", "/v1/placement?model=default/words").json()[0]["model"] == "default/words"
    assert ask("GET", "/v1/placement?model=none").status_code == 404
    ask("POST", "/v1/models/default/words/offline")
    assert ask("GET", "/v1/placement").json() == []


def test_placement_has_what_flows_now(ask, words):
    (placed,) = ask("GET", "/v1/placement").json()
    assert placed["now"]["cut"] == 0.5
    assert [(edge["source"], edge["target"], edge["remote"]) for edge in placed["heaviest"]] == [
        ("node-1", "node-2", True)
    ]
    assert placed["standbys"] == {"0.0": ["node-2"]}


def test_rebalance(ask, words, service):
    dry = ask("POST", "/v1/rebalance", json={"dry_run": True, "strategy": "traffic", "model": "words"})
    assert dry.status_code == 200
    assert (dry.json()["strategy"], dry.json()["dry_run"], dry.json()["moves"][0]["target"]) == (
        "traffic",
        True,
        "node-2",
    )
    begun = ask("POST", "/v1/rebalance")
    assert begun.status_code == 202
    assert begun.json()["before"]["cut"] == 0.38
    service.catalogue.clear()
    assert ask("POST", "/v1/rebalance", json={}).status_code == 200  # nothing to move


def test_a_rebalance_that_cannot_be(ask, words, service):
    unknown = ask("POST", "/v1/rebalance", json={"strategy": "best"})
    assert (unknown.status_code, "the strategies are" in unknown.json()["detail"]) == (422, True)
    assert ask("POST", "/v1/rebalance", json={"model": "none"}).status_code == 404
    assert ask("POST", "/v1/rebalance", json={"now": True}).status_code == 422
    service.unmovable = "what would have to move would lose its state"
    refused = ask("POST", "/v1/rebalance")
    assert (refused.status_code, refused.json()["detail"]) == (409, "what would have to move would lose its state")


def test_probes(ask, service):
    assert ask("GET", "/healthz").json()["node"] == "node-1"
    assert ask("GET", "/readyz").json() == {"ready": True, "node": "node-1"}
    service.reasons = ["Redis is away"]
    answer = ask("GET", "/readyz")
    assert answer.status_code == 503
    assert "Redis is away" in answer.json()["detail"]
    assert ask("GET", "/healthz").status_code == 200


def test_metrics_can_be_scraped(calling, words):
    async def scrape(http):
        await http.get("/v1/state/default/words/count/a")
        await http.get("/v1/state/default/words/count/b")
        return await http.get("/metrics")

    answer = calling(scrape)
    assert answer.headers["content-type"].startswith("text/plain; version=")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["penstock_node_up", "node-1"] == 1
    assert samples["penstock_node_network_bytes", "node-1"] == 2500.0
    assert samples["penstock_node_bottleneck", "node-1"] == 1
    assert samples["penstock_model_status", "default/words", "online"] == 1
    assert samples["penstock_model_latency_seconds", "0.99", "default/words"] == 0.003
    assert samples["penstock_model_events_total", "default/words", "in.skipped"] == 2
    assert samples["penstock_executor_records_in_total", "0.0", "default/words", "node-1"] == 7
    assert samples["penstock_channel_bytes_total", "0", "0.0", "1.0", "default/words"] == 3400
    route = "/v1/state/{group}/{name}/{step}/{key:path}"
    assert samples["penstock_http_requests_total", route, "404", "GET"] == 2  # by route: keys are no labels


def test_two_gateways_do_not_share_metrics(ask):
    for _ in range(2):
        assert 'route="/metrics"' not in ask("GET", "/metrics").text


def test_metrics_as_json(ask, words):
    view = ask("GET", "/v1/metrics").json()
    assert view["channels"]["default/words"][0]["records"] == 12


def test_results(ask, service, words):
    service.records = [1, 2, 3]
    assert ask("GET", "/v1/models/default/words/results?limit=2").json() == [2, 3]


def test_log(ask, service):
    for i in range(3):
        service.log_entry("node.joined", f"n{i}")
    assert [entry["text"] for entry in ask("GET", "/v1/log?limit=2").json()] == ["n1", "n2"]
    assert [entry["text"] for entry in ask("GET", "/v1/log?after=001").json()] == ["n1", "n2"]


def test_events_stream_heartbeat_and_release():
    async def main():
        service = FakeService()
        service.log_entry("node.joined", "one\ntwo")
        stream = as_events(service.follow(after="000"), heartbeat=0.01)
        assert await anext(stream) == b": penstock\n\n"
        first = await anext(stream)
        assert first.startswith(b"id: 001\nevent: node.joined\ndata: {")
        assert first.count(b"\n") == 4
        assert await anext(stream) == b":\n\n"  # silence
        service.log_entry("model.added", "later")
        while (piece := await anext(stream)) == b":\n\n":
            pass
        assert b"later" in piece
        assert service.followers == 1
        await stream.aclose()
        assert service.followers == 0

    asyncio.run(main())


def test_events_end_with_the_service(calling, service):
    async def read(http):
        service.log_entry("node.joined", "first")
        service.log_entry("node.joined", "second")
        service.close()
        return await http.get("/v1/events", headers={"last-event-id": "001"})

    answer = calling(read)
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_logs_of_a_model(ask, service, words):
    service.log_entry("model.log", "hello", "default/words")
    service.log_entry("model.failed", "not a word of it", "default/words")
    service.log_entry("model.log", "bye", "default/words")
    logs = "/v1/models/default/words/logs"
    assert [entry["text"] for entry in ask("GET", logs).json()] == ["hello", "bye"]
    assert [entry["text"] for entry in ask("GET", f"{logs}?limit=1").json()] == ["bye"]
    first = ask("GET", logs).json()[0]["id"]
    assert [entry["text"] for entry in ask("GET", f"{logs}?after={first}").json()] == ["bye"]
    assert ask("GET", "/v1/models/default/none/logs").status_code == 404
    assert ask("GET", "/v1/models/default/none/logs?follow=true").status_code == 404


def test_logs_are_followed(calling, service, words):
    service.log_entry("model.log", "hello", "default/words")
    service.log_entry("model.log", "bye", "default/words")

    async def main():
        stream = as_events(service.follow_logs("default/words", after="000"), heartbeat=60)
        await anext(stream)
        assert b'"hello"' in await anext(stream)
        assert b'"bye"' in await anext(stream)
        assert service.followers == 1
        await stream.aclose()
        assert service.followers == 0

    asyncio.run(main())

    async def read(http):
        service.close()
        return await http.get("/v1/models/default/words/logs?follow=true")

    assert calling(read).headers["content-type"].startswith("text/event-stream")


def test_documentation_knows_the_structs_and_every_route(ask):
    document = ask("GET", "/openapi.json").json()
    schemas = document["components"]["schemas"]
    views = {"ModelView", "NodeView", "PlacementView", "MetricsView", "LogEntry", "OperationView", "ChangePlan"}
    assert views | {"VersionView", "ProblemDetails"} <= schemas.keys()
    assert "/v1/state/{group}/{name}/{step}/{key}" in document["paths"]
    text = str(document)
    for name in {part.split("'")[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in schemas
    assert ask("GET", "/docs").status_code == 200


def test_documentation_lists_the_errors_of_every_route(ask):
    document = ask("GET", "/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            if path in ("/healthz", "/metrics", "/readyz"):
                continue
            responses = route["responses"]
            assert {"401", "403", "422"} <= responses.keys(), (method, path)
            assert "application/problem+json" in responses["422"]["content"], (method, path)
    models = document["paths"]["/v1/models"]["post"]
    assert {"200", "201", "202", "409", "413", "415", "503"} <= models["responses"].keys()
    assert {"application/octet-stream", "multipart/form-data"} <= models["requestBody"]["content"].keys()
    assert {"name", "timeout", "wait", "dry_run", "idempotency-key"} <= {p["name"] for p in models["parameters"]}
    update = document["paths"]["/v1/models/{group}/{name}"]["put"]
    assert {"200", "202", "404", "409"} <= update["responses"].keys()
    assert {"204", "202"} <= document["paths"]["/v1/models/{group}/{name}"]["delete"]["responses"].keys()
