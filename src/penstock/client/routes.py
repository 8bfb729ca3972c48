"""Where a push goes: the addresses of a source's lanes, and which nodes do not answer. Pure; times are given.

The empty address stands for the node that the client was made for: it may be one that this machine alone knows by that
name, and it is where everything goes that has no better way.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

FRESH = 5.0
"""Seconds for which addresses are taken for true unless something fails."""
BEHIND = 3.0
"""A node may be so many seconds behind: it tells of an older plan then."""
AVOIDED = (1.0, 60.0)
"""First and longest time in seconds for which a node that did not answer is avoided."""


class LaneAddress(msgspec.Struct, frozen=True):
    """One lane as a node tells of it."""

    lane: int
    executor: str = ""
    node: str = ""
    url: str = ""


class Addresses(msgspec.Struct, frozen=True):
    """The answer to `GET /v1/streams/…`."""

    revision: int
    lanes: tuple[LaneAddress, ...]
    cluster: str = ""
    nodes: dict[str, str] = {}


@dataclass
class _Health:
    failures: int = 0
    until: float = 0.0
    foreign: bool = False


class Routes:
    """What one client knows of one stream's addresses, from one push to the next. `url`: the client's own node."""

    def __init__(self, url: str) -> None:
        self._own = url
        self.addresses: Addresses | None = None
        self._known_at = self._changed_at = float("-inf")
        self._health: dict[str, _Health] = {}
        self._lanes: dict[int, tuple[str, str | None]] = {}
        """Lane -> node, and its address as it is used from here."""
        self._urls = [""]
        """Of nodes that take records for every lane."""

    @property
    def cluster(self) -> str:
        """The cluster's name for itself."""
        return "" if self.addresses is None else self.addresses.cluster

    @property
    def lanes(self) -> tuple[int, ...]:
        """Their numbers."""
        return tuple(self._lanes)

    @property
    def stale_at(self) -> float:
        """When it is time to ask again."""
        return self._known_at + FRESH

    def learn(self, addresses: Addresses, now: float) -> None:
        """A node has told."""
        known = self.addresses
        if known is not None and addresses.revision < known.revision and now < self._changed_at + BEHIND:
            return
        if known is None or known.revision != addresses.revision:
            self._changed_at = now
        if known is not None and known.cluster != addresses.cluster:
            self._health.clear()
        self.addresses, self._known_at = addresses, now
        self._lanes = {told.lane: (told.node, self._reachable(told.url)) for told in addresses.lanes}
        self._urls = ["", *filter(None, map(self._reachable, addresses.nodes.values()))]

    def node(self, lane: int | None) -> str:
        """The node that has the lane; empty: not known."""
        return "" if lane is None else self._lanes.get(lane, ("", None))[0]

    def lane_url(self, lane: int | None, now: float) -> str:
        """Where to send records for `lane`: to the node that has it if it can be reached, else to any."""
        url = None if lane is None else self._lanes.get(lane, ("", None))[1]
        return url if url is not None and self._answers(url, now) else self.any_url(now)

    def any_url(self, now: float, but: Iterable[str] = ()) -> str:
        """A node that answers, as far as is known: the client's own, another, or the one that failed longest ago."""
        avoided = set(but)
        for url in self._urls:
            if self._answers(url, now) and url not in avoided:
                return url
        return min(self._urls, key=lambda url: (url in avoided, self._health.get(url, _Health()).until))

    def failed(self, url: str, now: float) -> None:
        """The node did not answer: avoid it for a while."""
        health = self._health.setdefault(url, _Health())
        health.until = now + min(AVOIDED[1], AVOIDED[0] * 2.0 ** min(health.failures, 10))
        health.failures += 1

    def answered(self, url: str) -> None:
        """The node has answered."""
        health = self._health.get(url)
        if health is not None and not health.foreign:
            del self._health[url]

    def foreign(self, url: str) -> None:
        """What answers there is not this cluster."""
        if url:
            self._health[url] = _Health(foreign=True, until=float("inf"))

    def _answers(self, url: str, now: float) -> bool:
        health = self._health.get(url)
        return health is None or now >= health.until

    def _reachable(self, url: str) -> str | None:
        """The address as this client uses it; `None`: it means another machine here, or would send a token in clear."""
        if not url:
            return None
        if url.rstrip("/") == self._own:
            return ""
        there, own = urlsplit(url), urlsplit(self._own)
        if own.scheme == "https" and there.scheme != "https":
            return None
        if _loopback(there.hostname) and not _loopback(own.hostname):
            return None
        return url.rstrip("/")


def _loopback(host: str | None) -> bool:
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"
