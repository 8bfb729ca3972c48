"""The demo as a user of a cluster, against a cluster that answers from memory."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import httpx
import pytest

from penstock.cli import demo_session
from penstock.cli.demo_replay import Series, demo_files
from penstock.cli.demo_session import Session
from penstock.client import AsyncClient, ClientError

URL = "http://127.0.0.1:9"
FLOW = demo_files() / "anomaly.py"


def series(name: str, size: int) -> Series:
    readings = tuple({"sensor": name, "timestamp": f"2014-01-01 00:{i:02}:00", "value": float(i)} for i in range(size))
    return Series(name, readings, (("2014-01-01 00:02:00", "2014-01-01 00:04:00"),))


class Cluster:
    """Counts what is pushed, and shows it as the model's state."""

    def __init__(self, lose: int = 0, broken_lookups: int = 0) -> None:
        self.calls: list[str] = []
        self.last: dict[str, dict] = {}
        self.counts: Counter[str] = Counter()
        self.lose, self.broken_lookups = lose, broken_lookups
        self.online: dict | None = None
        self.status = "online"
        self.killed: list[int] = []
        self.package = b""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.calls.append(f"{request.method} {path}")
        if path == "/v1/nodes":
            return httpx.Response(200, json=[{"id": "n1", "live": True}])
        if path == "/v1/models":
            self.package = request.content
            return httpx.Response(201, json={"name": "default/anomaly"})
        if path == "/v1/models/default/anomaly":
            executor = {"steps": ["chart"], "pid": 4711, "node": "n1", "keys": 2}
            return httpx.Response(
                200, json={"status": self.status, "promotions": len(self.killed), "executors": [executor]}
            )
        if path.endswith("/online"):
            self.online = json.loads(request.content)
            return httpx.Response(200, json={"name": "default/anomaly", "status": "online"})
        if path.startswith("/v1/streams/"):
            if request.method == "GET":
                lane = {"lane": 0, "executor": "0.0", "node": "n1", "url": ""}
                return httpx.Response(200, json={"revision": 1, "lanes": [lane], "nodes": {}, "cluster": "c"})
            return self.push(request.content)
        if self.broken_lookups:
            self.broken_lookups -= 1
            return httpx.Response(500, json={"detail": "a worker is away"})
        return httpx.Response(200, json={"items": [self.state(name) for name in self.counts], "cursor": None})

    def push(self, body: bytes) -> httpx.Response:
        records = [json.loads(line) for line in body.splitlines()]
        for record in records:
            if self.lose:
                self.lose -= 1
                continue
            self.counts[record["sensor"]] += 1
            self.last[record["sensor"]] = record
        return httpx.Response(200, json={"accepted": len(records)})

    def state(self, name: str) -> dict:
        last = self.last[name]
        alarms = [["2014-01-01 00:03:00", "2014-01-01 00:03:00"]] if self.counts[name] > 3 else []
        known = {"records": self.counts[name], "time": last["timestamp"], "value": last["value"], "score": 1.0}
        return {"key": name, "value": known | {"alarms": alarms}}


@pytest.fixture
def connect(monkeypatch):
    """Let the session talk to a `Cluster`, quickly."""

    def use(cluster: Cluster) -> None:
        monkeypatch.setattr(
            demo_session, "AsyncClient", lambda url: AsyncClient(url, transport=httpx.MockTransport(cluster))
        )
        monkeypatch.setattr(demo_session, "PUSH_EVERY", 0.01)
        monkeypatch.setattr(demo_session, "LOOK_EVERY", 0.01)
        monkeypatch.setattr(demo_session, "SETTLE", 0.3)

    return use


def run(session: Session, stop: asyncio.Event | None = None, changed=lambda snapshot: None):
    return asyncio.run(session.run(stop or asyncio.Event(), changed))


def test_every_reading_is_pushed_and_counted(connect) -> None:
    cluster = Cluster()
    connect(cluster)
    phases: list[str] = []
    session = Session(URL, FLOW, [series("a", 50), series("b", 7)], 0.3, kill=cluster.killed.append)
    done = run(session, changed=lambda snapshot: phases.append(snapshot.phase))
    assert done.phase == phases[-1] == "finished"
    assert (done.pushed, done.counted, done.exact) == (57, 57, True)
    assert cluster.counts == {"a": 50, "b": 7}
    assert cluster.online == {"config": {"input": "push"}, "executors": 1, "recovery": "passive"}
    assert cluster.package.startswith(b"PK")
    assert "POST /v1/streams/default/anomaly/readings" in cluster.calls
    assert cluster.killed == [4711], "one worker is killed on the way"
    assert done.strike is not None
    assert "standbys took over" in done.strike.text
    summary = done.summary()
    assert summary["killed"]["worker"] == 4711
    assert summary["records"] == {"pushed": 57, "counted": 57, "exact": True}
    assert summary["windows"] == {"labelled": 2, "hit": 2, "missed": 0}
    assert summary["nodes"] == ["n1"]


def test_readings_that_the_cluster_lost_are_told(connect) -> None:
    connect(Cluster(lose=3))
    done = run(Session(URL, FLOW, [series("a", 20)], 0.1, kill=lambda pid: None))
    assert (done.pushed, done.counted, done.exact) == (20, 17, False)
    assert demo_session.unfinished(done) is not None


def test_a_look_up_that_fails_is_tried_again(connect) -> None:
    connect(Cluster(broken_lookups=2))
    done = run(Session(URL, FLOW, [series("a", 20)], 0.1, kill=lambda pid: None))
    assert done.waits == 2
    assert done.exact


def test_a_sensor_that_somebody_else_pushes_is_left_alone(connect) -> None:
    cluster = Cluster()
    connect(cluster)
    cluster.push(b'{"sensor": "mine", "timestamp": "2024-01-01 00:00:00", "value": 1}')
    done = run(Session(URL, FLOW, [series("a", 20)], 0.1, kill=lambda pid: None))
    assert (done.pushed, done.counted, done.exact) == (20, 20, True)


def test_stopping_half_way_still_counts_what_was_pushed(connect) -> None:
    connect(Cluster())
    stop = asyncio.Event()

    def changed(snapshot) -> None:
        if snapshot.counted > 10:
            stop.set()

    done = run(Session(URL, FLOW, [series("a", 1000)], 5.0, kill=lambda pid: None), stop, changed)
    assert done.phase == "interrupted"
    assert 10 < done.pushed < 1000
    assert done.exact


def test_a_model_that_cannot_go_online_ends_the_demo(connect) -> None:
    class Refusing(Cluster):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("/online"):
                return httpx.Response(500, json={"detail": "no module named anomaly"})
            return super().__call__(request)

    connect(Refusing())
    with pytest.raises(ClientError, match="no module named anomaly"):
        run(Session(URL, FLOW, [series("a", 10)], 0.1, kill=lambda pid: None))


def test_nothing_is_killed_while_somebody_has_no_standby(connect) -> None:
    cluster = Cluster()
    cluster.status = "degraded"
    connect(cluster)
    done = run(Session(URL, FLOW, [series("a", 20)], 0.1, kill=cluster.killed.append))
    assert (done.strike, cluster.killed) == (None, [])
    assert done.exact
