"""Names of models: `group/name`."""

from __future__ import annotations

import re

from penstock.errors import UsageError

DEFAULT_GROUP = "default"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def full_name(name: str) -> str:
    """`group/name`, from that or from a bare name. Raises `UsageError` for anything else."""
    group, slash, bare = name.rpartition("/")
    group = group if slash else DEFAULT_GROUP
    if not _NAME.fullmatch(bare) or not _NAME.fullmatch(group):
        raise UsageError(
            f"{name!r} is not the name of a model",
            remedy="use NAME or GROUP/NAME of letters, digits, '.', '_' and '-', 100 of them at most",
        )
    return f"{group}/{bare}"
