"""Nexmark query 11, user sessions: how many bids each bidder makes before a pause of more than ten seconds.

penstock run examples/nexmark/q11.py
"""

from pathlib import Path

import penstock as ps

ps.config.defaults(input=str(Path(__file__).parent.parent / "data" / "nexmark_events.ndjson.gz"))

BID = 2

flow = ps.Flow("nexmark-q11")
(
    flow.source("events", ps.ndjson(ps.config["input"]))
    .filter("bids", lambda event: event["type"] == BID)
    .key_by("bidder", "bidder")
    .window(ps.session("10s"), on="ts")
    .aggregate("sessions", n=ps.count())
    .map("row", lambda s: {"bidder": s["key"], "n": s["n"], "start_ts": s["start"], "end_ts": s["end"]})
    .sink("out", ps.stdout())
)
