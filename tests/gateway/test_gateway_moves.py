"""Replicas and moves over HTTP."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.gateway.packages import package


@pytest.fixture
def replicated(ask):
    """The model `default/words`, online with standbys."""
    assert ask("POST", "/v1/models", content=package()).status_code == 201
    online = ask("POST", "/v1/models/default/words/online", json={"recovery": "active", "executors": 2})
    assert online.status_code == 200, online.text
    return online.json()


def test_a_model_tells_of_its_replicas(replicated):
    first, second = replicated["executors"]
    assert [r["role"] for r in first["replicas"]] == ["primary", "active"]
    assert (first["degraded"], second["degraded"]) == (False, True)
    assert first["replicas"][1]["behind"] == 3


def test_a_move_is_answered_when_it_has_ended(ask, replicated):
    done = ask("POST", "/v1/models/default/words/move", json={"executor": "0.0", "node": "node-2"})
    assert done.status_code == 200
    assert done.json() == {
        "model": "default/words", "executor": "0.0", "source": "node-1", "target": "node-2", "done": True, "reason": "",
    }  # fmt: skip
    stays = ask("POST", "/v1/models/default/words/move", json={"executor": "0.0", "node": "node-9"})
    assert (stays.status_code, stays.json()["reason"]) == (200, "it was given up")
    begun = ask("POST", "/v1/models/default/words/move?wait=0", json={"executor": "0.0", "node": "node-2"})
    assert (begun.status_code, begun.json()["done"]) == (202, False)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"executor": "7.7", "node": "node-2"}, 404),
        ({"executor": "0.0"}, 422),
        ({"executor": "0.0", "node": ""}, 422),
        ({"executor": "0.0", "node": "node-2", "now": True}, 422),
    ],
)
def test_what_cannot_be_moved(ask, replicated, body, status):
    assert ask("POST", "/v1/models/default/words/move", json=body).status_code == status


def test_a_model_without_replicas_cannot_be_moved(ask):
    ask("POST", "/v1/models", content=package())
    ask("POST", "/v1/models/default/words/online")
    refused = ask("POST", "/v1/models/default/words/move", json={"executor": "0.0", "node": "node-2"})
    assert refused.status_code == 409
    assert "recovery" in refused.json()["detail"]


def test_metrics_of_replicas(ask, replicated):
    families = {f.name: f for f in text_string_to_metric_families(ask("GET", "/metrics").text)}
    degraded = {s.labels["executor"]: s.value for s in families["penstock_executor_degraded"].samples}
    assert degraded == {"0.0": 0.0, "0.1": 1.0}
    (behind, _) = families["penstock_replica_behind"].samples
    assert (behind.labels["role"], behind.labels["node"], behind.value) == ("active", "node-2", 3.0)
    assert "penstock_node_refused" in families
    assert "penstock_model_promotions" in families


def test_split(ask, replicated):
    begun = ask("POST", "/v1/models/default/words/split", json={"what": "0.0"})
    assert begun.status_code == 202
    assert begun.json() == {"model": "default/words", "executor": "0.0", "groups": 128}
    assert ask("POST", "/v1/models/default/words/split", json={"what": "nothing"}).status_code == 404
    assert ask("POST", "/v1/models/default/words/split", json={}).status_code == 422
