"""Nexmark query 5, hot items: the auctions with the most bids of the last ten seconds, every two seconds.

penstock run examples/nexmark/q5.py

Two windows in a row: bids per auction, then the best of all auctions. A window's result has the window's last moment as
its event time, so the second window closes as soon as all counts of the first are known. Ties are all reported.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import penstock as ps

ps.config.defaults(input=str(Path(__file__).parent.parent / "data" / "nexmark_events.ndjson.gz"))

BID = 2


class Leaders(ps.Aggregate):
    """The most bids, and every auction that has so many: an aggregate of one's own."""

    def init(self) -> list[Any]:
        return [0, []]

    def add(self, acc: list[Any], values: list[Any], times: Sequence[int]) -> list[Any]:
        for window in values:
            acc = self.merge(acc, [window["num"], [window["key"]]])
        return acc

    def merge(self, acc: list[Any], other: list[Any]) -> list[Any]:
        if acc[0] == other[0]:
            return [acc[0], acc[1] + other[1]]
        return acc if acc[0] > other[0] else other

    def result(self, acc: list[Any]) -> list[Any]:
        return acc


def rows(best: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per leading auction; the key is the start of the window of ten seconds."""
    num, auctions = best["leaders"]
    for auction in auctions:
        yield {"ws": best["key"], "auction": auction, "num": num}


flow = ps.Flow("nexmark-q5")
(
    flow.source("events", ps.ndjson(ps.config["input"]))
    .filter("only-bids", lambda event: event["type"] == BID)
    .key_by("auction", "auction")
    .window(ps.sliding("10s", every="2s"), on="ts")
    .aggregate("bids", num=ps.count())
    .key_by("start", "start")
    .window(ps.tumbling("2s"))
    .aggregate("hottest", leaders=Leaders())
    .flat_map("rows", rows)
    .sink("out", ps.stdout())
)
