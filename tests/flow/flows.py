"""Small flows and connectors that the tests of this package share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import penstock as ps


class Endless(ps.Source):
    """A source that never ends; tests feed it."""

    bounded = False
    replayable = False

    def partitions(self) -> list[str]:
        return ["0"]

    def open(self, partition: str, offset: Any, ctx: ps.ConnectorContext) -> ps.Reader:
        raise NotImplementedError


class Kept(ps.Sink):
    """A sink that is only a name; the harness keeps its records."""

    def open(self, ctx: ps.ConnectorContext) -> ps.Writer:
        raise NotImplementedError


def flow_of(steps: Callable[[ps.Stream[Any]], ps.Stream[Any]], *, bounded: bool = True, **options: Any) -> ps.Flow:
    """source `in` -> the steps -> sink `out`."""
    flow = ps.Flow("test", **options)
    source = ps.iterable([]) if bounded else Endless()
    steps(flow.source("in", source)).sink("out", Kept())
    return flow


def outcome(steps: Callable[[ps.Stream[Any]], ps.Stream[Any]], records: list[Any], **options: Any) -> list[Any]:
    """What comes out when `records` go in."""
    flow_options = {name: options.pop(name) for name in ("bounded", "on_error") if name in options}
    return ps.testing.run(flow_of(steps, **flow_options), {"in": records}, **options).outputs["out"]
