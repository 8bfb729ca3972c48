"""Reading Server-Sent Events, without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import msgspec

SILENCE = 45.0
"""Seconds without a sign of life (a node sends one every 15) after which a connection is taken for dead."""


class EventParser:
    """Reads Server-Sent Events line by line; remembers where to go on after a break."""

    def __init__(self, last_id: str | None = None) -> None:
        self.last_id = last_id
        self._data: list[str] = []

    def feed(self, line: str) -> dict[str, Any] | None:
        """The event that `line` completes, if it does."""
        if not line:
            data, self._data = "\n".join(self._data), []
            return msgspec.json.decode(data, type=dict[str, Any]) if data else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            self.last_id = value
        elif name == "data":
            self._data.append(value)
        return None

    def request(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        """What to ask for now."""
        headers = {"accept": "text/event-stream"}
        if self.last_id is not None:
            headers["last-event-id"] = self.last_id
        return {
            "method": "GET",
            "url": path,
            "headers": headers,
            "params": dict(query) or None,
            "timeout": httpx.Timeout(10.0, read=SILENCE),
        }
