"""Nexmark query 3, local item suggestion: who sells in category 10 from Oregon, Idaho or California.

penstock run examples/nexmark/q3.py

A join without a window: a person may register before or after the auction is opened, so both are kept.
"""

from pathlib import Path
from typing import Any

import penstock as ps

ps.config.defaults(input=str(Path(__file__).parent.parent / "data" / "nexmark_events.ndjson.gz"))

PERSON, AUCTION = 0, 1


def is_local(event: dict[str, Any]) -> bool:
    """A person of the three states."""
    return event["type"] == PERSON and event["state"] in ("OR", "ID", "CA")


def is_offer(event: dict[str, Any]) -> bool:
    """An auction in category 10."""
    return bool(event["type"] == AUCTION and event["category"] == 10)


def row(sale: ps.Keyed) -> dict[str, Any]:
    """A seller with what is for sale."""
    person, auction = sale.value
    return {"name": person["name"], "city": person["city"], "state": person["state"], "id": auction["id"]}


flow = ps.Flow("nexmark-q3")
events = flow.source("events", ps.ndjson(ps.config["input"]))
offers = events.filter("offers", is_offer).key_by("seller", "seller")
(
    events.filter("locals", is_local)
    .key_by("person", "id")
    .join("sales", offers)
    .map("row", row)
    .sink("out", ps.stdout())
)
