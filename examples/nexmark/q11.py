"""Nexmark query 11, user sessions: how many bids each bidder makes before a pause of more than ten seconds.

penstock run examples/nexmark/q11.py
"""

from pathlib import Path
from typing import Any

import penstock as ps

ps.config.defaults(input=str(Path(__file__).parent.parent / "data" / "nexmark_events.ndjson.gz"))

BID = 2


def row(session: dict[str, Any]) -> dict[str, int]:
    """A session ends ten seconds after its last bid."""
    return {"bidder": session["key"], "n": session["n"], "start_ts": session["start"], "end_ts": session["end"]}


flow = ps.Flow("nexmark-q11")
(
    flow.source("events", ps.ndjson(ps.config["input"]))
    .filter("bids", lambda event: event["type"] == BID)
    .key_by("bidder", "bidder")
    .window(ps.session("10s"), on="ts")
    .aggregate("sessions", n=ps.count())
    .map("row", row)
    .sink("out", ps.stdout())
)
