"""What was found out about a package under a configuration: small JSON texts in a directory beside its tree.

They save work and are not needed, so nothing is fsynced; what a power cut has left is read as nothing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from penstock.cluster import disk

KEPT = 16
"""Texts that are kept for one package: the latest."""


def write(folder: Path, config: str, description: bytes, temporary: Path) -> None:
    """Keep a text, made at `temporary` and moved into `folder`. Raises `OSError`."""
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        temporary.write_bytes(description)
        temporary.replace(folder / _name(config))
    finally:
        disk.remove(temporary)
    latest_last = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for path in latest_last[:-KEPT]:
        disk.remove(path)


def read(folder: Path, config: str) -> bytes | None:
    """What was kept; `None`: nothing, or nothing readable."""
    try:
        found = (folder / _name(config)).read_bytes()
        msgspec.json.decode(found)
    except (OSError, msgspec.DecodeError):
        return None
    return found


def _name(config: str) -> str:
    return hashlib.sha256(config.encode()).hexdigest() + ".json"
