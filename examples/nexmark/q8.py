"""Nexmark query 8, new users: who opened an auction within the same ten seconds in which they registered.

penstock run examples/nexmark/q8.py

Both kinds of event become one stream keyed by person; a window knows whether it saw both. Values that are `None` are
left out by aggregates, so only the registration gives a name.
"""

from pathlib import Path
from typing import Any

import penstock as ps

ps.config.defaults(input=str(Path(__file__).parent.parent / "data" / "nexmark_events.ndjson.gz"))

PERSON, AUCTION = 0, 1


def activity(event: dict[str, Any]) -> dict[str, Any]:
    """What a person did, and when."""
    if event["type"] == PERSON:
        return {"person": event["id"], "name": event["name"], "auctions": 0, "ts": event["ts"]}
    return {"person": event["seller"], "name": None, "auctions": 1, "ts": event["ts"]}


def did_both(window: dict[str, Any]) -> bool:
    """Registered, and opened at least one auction."""
    return window["who"] is not None and window["auctions"] > 0


def row(window: dict[str, Any]) -> dict[str, Any]:
    """The person and the start of the window."""
    return {"id": window["key"], "name": window["who"], "ws": window["start"]}


flow = ps.Flow("nexmark-q8")
(
    flow.source("events", ps.ndjson(ps.config["input"]))
    .filter("no-bids", lambda event: event["type"] in (PERSON, AUCTION))
    .map("activity", activity)
    .key_by("person", "person")
    .window(ps.tumbling("10s"), on="ts")
    .aggregate("windows", who=ps.first("name"), auctions=ps.sum("auctions"))
    .filter("both", did_both)
    .map("row", row)
    .sink("out", ps.stdout())
)
