"""Nexmark q3, q5, q8 and q11 over the real events, straight through the operators, against the batch references."""

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from tests.flow.tape import Into, Tape, start

from penstock.flow import aggregates as agg
from penstock.flow.batch import END_TIME, MIN_TIME, Rows
from penstock.flow.steps.join import Join
from penstock.flow.steps.stamp import Stamp
from penstock.flow.steps.window import WindowAggregate
from penstock.flow.windows import session, sliding, tumbling

ROOT = Path(__file__).resolve().parents[2]
PERSON, AUCTION, BID = range(3)


def read(path):
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def events():
    return read(ROOT / "examples/data/nexmark_events.ndjson.gz")


def reference(query, *names):
    return Counter(tuple(row[name] for name in names) for row in read(ROOT / f"tests/data/nexmark_{query}.ndjson.gz"))


def stamped(operator, port=0):
    stamper, _ = start(Stamp("time", (), "", "ts"))
    stamper.connect((Into(operator, port),))
    return stamper


def pour(stampers, events, key, lanes, shuffle):
    """The events into the stampers (chosen by type), keyed; in order on several lanes, which are read in turn, or
    with records moved by up to 50 places."""
    if shuffle:
        moved = random.Random(3)
        order = sorted(range(len(events)), key=lambda i: i + moved.uniform(0, 50))
        events = [events[i] for i in order]
    used = {id(stamper): stamper for stamper in stampers.values()}
    for stamper in used.values():
        for lane in range(lanes):
            stamper.advance(0, lane, MIN_TIME)
    size = 500
    for at in range(0, len(events), size * lanes):
        for lane in range(lanes):
            part = events[at : at + size * lanes][lane::lanes]
            for kind, stamper in stampers.items():
                mine = [event for event in part if event["type"] == kind]
                if mine:
                    stamper.process(0, Rows(mine, [key(event) for event in mine], None, lane))
    for stamper in used.values():
        for lane in range(lanes):
            stamper.advance(0, lane, END_TIME)


VARIANTS = pytest.mark.parametrize(("lanes", "shuffle", "late_ms"), [(1, False, 0), (4, False, 0), (1, True, 2000)])


@VARIANTS
def test_q5_the_most_bid_for_auctions_of_sliding_windows(events, lanes, shuffle, late_ms):
    counting = WindowAggregate("hot", (), "", sliding("10s", every="2s"), (("n", agg.count()),), late_ms)
    operator, _, late = start(counting)
    best, hottest, _ = start(WindowAggregate("best", (), "", tumbling("2s"), (("top", agg.max("n")),)))

    class Rekey(Into):
        def send(self, batch):
            counts.extend(batch.values)
            keys = [value["start"] for value in batch.values]
            super().send(Rows(batch.values, keys, batch.times, batch.lane))

    counts = []
    operator.connect((Rekey(best), late))
    pour({BID: stamped(operator)}, events, lambda bid: bid["auction"], lanes, shuffle)
    operator.finish()
    best.finish()
    tops = {record["key"]: record["top"] for record in hottest.records()}
    found = Counter((c["start"], c["key"], c["n"]) for c in counts if c["n"] == tops[c["start"]])
    assert late.records() == []
    assert best.ctx.counters["late"] == 0
    assert len(tops) == len(hottest.records()), "one best per window"
    assert found == reference("q5", "ws", "auction", "num")
    assert sum(found.values()) == 55


@VARIANTS
def test_q8_persons_who_opened_an_auction_in_the_window_they_came(events, lanes, shuffle, late_ms):
    operator, out, late = start(Join("new", (), "", tumbling("10s"), late_ms=late_ms))
    pour(
        {PERSON: stamped(operator, 0), AUCTION: stamped(operator, 1)},
        events,
        lambda event: event["id"] if event["type"] == PERSON else event["seller"],
        lanes,
        shuffle,
    )
    operator.finish()
    found = {(r.key, r.value[0]["name"], r.value[0]["ts"] // 10_000 * 10_000) for r in out.records()}
    assert late.records() == []
    assert Counter(found) == reference("q8", "id", "name", "ws")
    assert len(found) == 296
    assert operator.state == {}


@VARIANTS
def test_q11_sessions_of_bidders(events, lanes, shuffle, late_ms):
    operator, out, late = start(WindowAggregate("s", (), "", session("10s"), (("n", agg.count()),), late_ms))
    pour({BID: stamped(operator)}, events, lambda bid: bid["bidder"], lanes, shuffle)
    operator.finish()
    found = Counter((v["key"], v["n"], v["start"], v["end"]) for v in out.values())
    assert late.records() == []
    assert found == reference("q11", "bidder", "n", "start_ts", "end_ts")
    assert sum(found.values()) == 2861


def test_q3_an_unbounded_join_whichever_side_comes_first(events):
    reference_rows = reference("q3", "name", "city", "state", "id")
    for sides in (events, events[::-1]):
        operator, _, _ = start(Join("q3", (), ""))
        out = Tape()
        operator.connect((out, Tape()))
        for event in sides:
            if event["type"] == PERSON and event["state"] in ("OR", "ID", "CA"):
                operator.process(0, Rows([event], [event["id"]]))
            elif event["type"] == AUCTION and event["category"] == 10:
                operator.process(1, Rows([event], [event["seller"]]))
        found = Counter((p["name"], p["city"], p["state"], a["id"]) for p, a in out.values())
        assert found == reference_rows
        assert sum(found.values()) == 700
