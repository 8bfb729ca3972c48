"""What is on record of a model's durable checkpoints: in Redis, and for people. What a checkpoint consists of is in the
store, in its manifest."""

from __future__ import annotations

from functools import lru_cache

import msgspec


class CheckpointRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How the checkpoints of one generation of a model go."""

    generation: int
    number: int = 0
    """The last complete one; 0: there is none."""
    at: float = 0.0
    """When it became complete, seconds of Redis time."""
    of: int = 0
    """The live update whose version it has (`Plan.of`)."""
    seconds: float = 0.0
    """How long it took."""
    pause: float = 0.0
    """The longest that an executor waited for its barriers."""
    bytes: int = 0
    """The size of all parts."""
    failed: int = 0
    """Checkpoints that failed, over all of this generation."""
    in_a_row: int = 0
    """Those since the last complete one."""
    error: str = ""
    """Why the latest one failed; empty when it did not."""


@lru_cache(maxsize=4096)
def decoded(text: str) -> CheckpointRecord:
    """A record as it is in Redis."""
    return msgspec.json.decode(text, type=CheckpointRecord)
