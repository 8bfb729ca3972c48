"""Nexmark query 1, currency conversion: every bid with its price in another currency (an exact thousandth).

penstock run examples/nexmark/q1.py
"""

from pathlib import Path
from typing import Any

import penstock as ps

ps.config.defaults(input=str(Path(__file__).parent.parent / "data" / "nexmark_events.ndjson.gz"))

BID = 2


def convert(bid: dict[str, Any]) -> dict[str, Any]:
    """At 0.908 to one."""
    return {"auction": bid["auction"], "bidder": bid["bidder"], "price_x1000": 908 * bid["price"], "ts": bid["ts"]}


flow = ps.Flow("nexmark-q1")
(
    flow.source("events", ps.ndjson(ps.config["input"]))
    .filter("bids", lambda event: event["type"] == BID)
    .map("convert", convert)
    .sink("out", ps.stdout())
)
