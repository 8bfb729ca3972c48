"""Input that cannot be parsed, kept in its place among the good records until its turn comes.

A block of input is parsed at once, but a bad record is reported only when the records before it have been handed out.
So a checkpoint in the middle of a block counts (or dead-letters) each bad record once, also after a restart.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from penstock.errors import ConnectorError
from penstock.flow.connector import ConnectorContext


class BadRecord(NamedTuple):
    """Stands where a record would be."""

    raw: Any
    error: ConnectorError


def report(ctx: ConnectorContext, bad: BadRecord) -> None:
    """Apply the flow's policy: raises when it is to fail (or there is none), returns when the record is skipped."""
    if ctx.on_bad_record is None:
        raise bad.error
    ctx.on_bad_record(bad.raw, bad.error)


def without_bad(records: list[Any], ctx: ConnectorContext) -> list[Any]:
    """The good records in order; every bad one is reported."""
    good = []
    for record in records:
        if type(record) is BadRecord:
            report(ctx, record)
        else:
            good.append(record)
    return good


def shortened(raw: bytes | str, limit: int = 120) -> str:
    """What was received, short enough for a message."""
    text = repr(raw)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(raw)} long)"
