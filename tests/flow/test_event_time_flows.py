"""Event time through whole flows: several partitions and executors, checkpoints, late outputs."""

import json
import re
from collections import Counter

import pytest
from tests.flow.test_nexmark_windows import BID, ROOT, read, reference

import penstock as ps
from penstock.testing import Harness, run


@pytest.fixture(scope="module")
def bids():
    return [event for event in read(ROOT / "examples/data/nexmark_events.ndjson.gz") if event["type"] == BID]


def sessions():
    flow = ps.Flow("q11")
    (
        flow.source("bids", ps.iterable([]))
        .key_by("bidder", "bidder")
        .window(ps.session("10s"), on="ts")
        .aggregate("sessions", n=ps.count())
        .sink("out", ps.collect())
    )
    return flow


@pytest.mark.parametrize(("executors", "partitions"), [(1, 1), (2, 3)])
def test_q11_is_the_same_however_it_is_spread(bids, executors, partitions):
    result = run(sessions(), {"bids": bids}, executors=executors, partitions=partitions, batch_records=500)
    found = Counter((r["key"], r["n"], r["start"], r["end"]) for r in result.outputs["out"])
    assert found == reference("q11", "bidder", "n", "start_ts", "end_ts")
    assert not any(name.endswith(".late") for name in result.counters)


def hottest():
    flow = ps.Flow("q5")
    counts = (
        flow.source("bids", ps.iterable([]))
        .key_by("auction", "auction")
        .window(ps.sliding("10s", every="2s"), on="ts")
        .aggregate("bids-per-auction", n=ps.count())
    )
    top = (
        counts.key_by("window", "start")
        .window(ps.tumbling("2s"), on=lambda value: value["end"] - 1)
        .aggregate("hottest", n=ps.max("n"), bids=ps.sum("n"))
    )
    top.sink("out", ps.collect())
    top.late.sink("late", ps.collect())
    return flow


def test_q5_in_two_stages_of_windows_loses_nothing_between_them(bids):
    result = run(hottest(), {"bids": bids}, executors=2, partitions=2, batch_records=300)
    expected = dict(reference("q5", "ws", "num").keys())
    assert {r["key"]: r["n"] for r in result.outputs["out"]} == expected
    assert sum(r["bids"] for r in result.outputs["out"]) == 5 * len(bids)
    assert result.outputs["late"] == []


@pytest.mark.parametrize("make", [sessions, hottest])
def test_windows_go_on_from_a_checkpoint(bids, make):
    part = bids[:12_000]
    whole = run(make(), {"bids": part}, executors=2).outputs["out"]
    with Harness(make(), executors=2) as harness:
        harness.feed("bids", part[:7000])
        harness.checkpoint()
        harness.feed("bids", part[7000:9000])
        with harness.restart(executors=3) as again:
            again.feed("bids", part[9000:])
            again.finish()
            found = again.outputs["out"]
    assert Counter(map(repr, found)) == Counter(map(repr, whole))


def test_results_and_late_records_are_plain_and_can_be_keyed_again():
    flow = ps.Flow("plain")
    per_second = (
        flow.source("in", ps.iterable([]))
        .key_by("sensor", "sensor")
        .window(ps.tumbling("1s"), on="ts")
        .aggregate("seconds", n=ps.count())
    )
    per_second.sink("out", ps.collect())
    per_second.key_by("again", "key").count("windows", emit="final").sink("counts", ps.collect())
    per_second.late.sink("late", ps.collect())
    records = [{"sensor": s, "ts": ts} for s, ts in (("a", 100), ("a", 1500), ("b", 1600), ("a", 200), ("b", 3000))]
    outputs = run(flow, {"in": records}, batch_records=1).outputs
    assert sorted(outputs["out"], key=lambda r: (r["key"], r["start"])) == [
        {"key": key, "start": start, "end": start + 1000, "n": 1}
        for key, start in (("a", 0), ("a", 1000), ("b", 1000), ("b", 3000))
    ]
    assert sorted(outputs["counts"]) == [ps.Keyed("a", 2), ps.Keyed("b", 2)]
    assert outputs["late"] == [{"sensor": "a", "ts": 200}]


def test_the_first_program_of_the_page_gives_what_is_printed_below_it():
    page = (ROOT / "docs/event-time.md").read_text("utf-8")
    code, printed = re.search(r"```python\n(.*?)```.*?```json\n(.*?)```", page, re.S).groups()
    names = {"__name__": "stats"}
    exec(compile(code, "stats.py", "exec"), names)
    assert run(names["flow"]).outputs["out"] == [json.loads(line) for line in printed.splitlines()]


@pytest.mark.parametrize(("batch", "late"), [(3, None), (1, 1)])
def test_a_window_closes_at_the_end_of_a_batch(batch, late):
    flow = ps.Flow("batches")
    records = [{"ts": 1000}, {"ts": 30_000}, {"ts": 2000}]
    (
        flow.source("in", ps.iterable([]))
        .key_by("k", lambda r: 0)
        .window(ps.tumbling("10s"), on="ts")
        .aggregate("n", n=ps.count())
        .sink("out", ps.collect())
    )
    assert run(flow, {"in": records}, batch_records=batch).counters.get("n.late") == late
