"""Nexmark query 2, selection: the bids on every 123rd auction.

penstock run examples/nexmark/q2.py
"""

from pathlib import Path

import penstock as ps

ps.config.defaults(input=str(Path(__file__).parent.parent / "data" / "nexmark_events.ndjson.gz"), every=123)

BID = 2
EVERY = ps.config["every"]

flow = ps.Flow("nexmark-q2")
(
    flow.source("events", ps.ndjson(ps.config["input"]))
    .filter("chosen", lambda event: event["type"] == BID and event["auction"] % EVERY == 0)
    .map("price", lambda bid: {"auction": bid["auction"], "price": bid["price"]})
    .sink("out", ps.stdout())
)
