"""Whether the unpacked tree of a package still is what the package says."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from penstock.cluster import disk
from penstock.model.archive import PackageError, open_archive
from penstock.model.package import Limits

_CACHE = "__pycache__"


def flaw(package: Path, tree: Path, limits: Limits) -> str | None:
    """What is wrong with `tree`; `None`: it has exactly the files that RECORD in the package lists, as they are there.

    Bytecode that Python has cached there since is removed: a damaged one could not be told from a good one. Raises
    `PackageError`, `OSError`.
    """
    with open_archive(package, limits) as archive:
        own = f"{archive.dist_info}/RECORD"
        record = archive.read(own, limits.member)
    wanted = {name: digest for name, digest, _ in csv.reader(record.decode().splitlines())}
    wanted[own] = _digest(hashlib.sha256(record).digest())
    if not tree.is_dir() or tree.is_symlink():
        return "there is no tree"
    found = set(_files(tree, wanted.keys()))
    for name in sorted(wanted.keys() ^ found):
        return f"{name} is missing" if name in wanted else f"{name} does not belong there"
    for name, digest in wanted.items():
        if _digest(bytes.fromhex(disk.sha256(tree / name))) != digest:
            return f"{name} was changed"
    return None


def unpacked_size(package: Path, limits: Limits) -> int | None:
    """Bytes that the tree of a package takes; `None` when the package cannot be read."""
    try:
        with open_archive(package, limits) as archive:
            return sum(member.size for member in archive.members.values())
    except PackageError:
        return None


def _digest(value: bytes) -> str:
    """As RECORD writes it."""
    return "sha256=" + base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _files(tree: Path, wanted: Collection[str]) -> Iterator[str]:
    """The names of all that is not a directory, without cached bytecode."""
    for folder, folders, names in os.walk(tree):
        place = Path(folder)
        for name in list(folders):
            path = place / name
            inside = path.relative_to(tree).as_posix()
            if name == _CACHE and not any(each.startswith(f"{inside}/") for each in wanted):
                disk.remove(path)
                folders.remove(name)
            elif path.is_symlink():
                yield inside
        for name in names:
            yield (place / name).relative_to(tree).as_posix()
