"""Models, nodes, placement, probes, metrics, events, documentation."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.gateway.fake_service import FakeService

from penstock.gateway.events import as_events


def test_the_life_of_a_model(ask):
    added = ask("POST", "/v1/models", json={"path": "/flows/words.py", "name": "w"})
    assert added.status_code == 201
    assert added.headers["location"] == "/v1/models/default/w"
    assert added.json()["status"] == "offline"
    online = ask("POST", "/v1/models/default/w/online", json={"config": {"n": 3}, "executors": 2}).json()
    assert (online["status"], online["config"], len(online["executors"])) == ("online", {"n": 3}, 2)
    assert ask("POST", "/v1/models/default/w/online").status_code == 409
    assert [model["name"] for model in ask("GET", "/v1/models").json()] == ["default/w"]
    assert ask("POST", "/v1/models/default/w/offline").json()["status"] == "offline"
    deleted = ask("DELETE", "/v1/models/default/w")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert ask("GET", "/v1/models/default/w").status_code == 404


def test_online_without_a_body(ask):
    ask("POST", "/v1/models", json={"path": "/flows/words.py"})
    assert ask("POST", "/v1/models/default/words/online").json()["config"] == {}


@pytest.mark.parametrize("body", [{"executors": 0}, {"executors": 1000}, {"config": []}, {"recovery": "none"}])
def test_online_refuses_what_it_does_not_know(ask, body):
    ask("POST", "/v1/models", json={"path": "/flows/words.py"})
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


def test_documentation_knows_the_structs_and_every_route(ask):
    document = ask("GET", "/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert {"ModelView", "NodeView", "PlacementView", "MetricsView", "LogEntry"} <= schemas.keys()
    assert "/v1/state/{group}/{name}/{step}/{key}" in document["paths"]
    text = str(document)
    for name in {part.split("'")[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in schemas
    assert ask("GET", "/docs").status_code == 200
