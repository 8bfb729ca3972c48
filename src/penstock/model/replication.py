"""How a model's standbys are kept up to date, as its author or whoever brings it online states it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from penstock.errors import UsageError
from penstock.settings import Replication

__all__ = ["replication_of"]

_LEAST: dict[str, float] = {
    "checkpoint_interval": 0.01, "checkpoint_records": 0, "checkpoint_bytes": 1024, "digest_every": 1,
    "handover_lag": 0,
}  # fmt: skip
_MOST: dict[str, float] = {
    "checkpoint_interval": 3600.0, "checkpoint_records": 2**40, "checkpoint_bytes": 2**30, "digest_every": 2**20,
    "handover_lag": 2**20,
}  # fmt: skip


def replication_of(
    given: Mapping[str, Any], before: Replication | None = None, place: str = "replication"
) -> Replication:
    """`before` (or the defaults) with what was given. Raises `UsageError` that names the setting, what was received and
    what is possible."""
    known = Replication.__struct_fields__
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"{place}: there is no setting {name!r}", remedy=f"the settings are: {', '.join(known)}")
        whole = name != "checkpoint_interval"
        wanted = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted) or not _LEAST[name] <= value <= _MOST[name]:
            kind = "a whole number" if whole else "seconds"
            raise UsageError(
                f"{place}: {name} = {value!r} is not possible",
                remedy=f"give {kind} from {_LEAST[name]:g} to {_MOST[name]:g}",
            )
    return msgspec.structs.replace(before or Replication(), **given)
