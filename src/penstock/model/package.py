"""A model's package: a wheel with the manifest, the lock and, when wanted, the wheels of what it requires.

`build` makes one, `open_package` judges one that somebody else made, `unpack` lays it down as a tree that
`penstock.model.loader` loads from.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from penstock.errors import UsageError
from penstock.model.archive import Archive, Limits, PackageError, open_archive
from penstock.model.loader import split_target
from penstock.model.lock import LOCK_FILE, LOCK_LIMIT, make_lock, parse_lock
from penstock.model.manifest import MANIFEST_FILE, Manifest, check_manifest, config_schema, read_manifest
from penstock.model.requirement import parse_requirement, wheel_parts, wheel_stem
from penstock.model.wheel import WHEELS, collect, write_wheel

__all__ = ["Limits", "Package", "PackageError", "build", "open_package", "summary", "unpack"]

_TEXT_LIMIT = 1 << 20
"""Bytes of a manifest, of METADATA and of WHEEL."""
_IDENTITY = ("name:", "version:")


class Package(msgspec.Struct, frozen=True):
    """A package that has been checked."""

    path: Path
    """The file."""
    digest: str
    """SHA-256 of the file, in hexadecimal digits."""
    size: int
    """Bytes of the file."""
    manifest: Manifest
    """Its `name` is never `None`."""
    lock: str
    """What is to be installed for it, as requirements with hashes; empty when nothing is required."""
    bundled: tuple[str, ...]
    """The names of the wheels inside."""


def build(
    source: Path,
    out: Path,
    *,
    name: str | None = None,
    bundle: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Package:
    """Make a package in the directory `out`: from a model's directory, a single file (also `path:object`), or a wheel
    that is a package already and is copied.

    `name` replaces the manifest's; without either a single file is named after itself. `bundle` carries all required
    wheels along. `progress` is told what is being done. Equal input gives equal bytes. Raises `UsageError`.
    """
    say = progress or (lambda text: None)
    out.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".whl" and source.is_file():
        return _take_wheel(source, out, name)
    path, attribute = split_target(str(source))
    manifest = read_manifest(path)
    flow = manifest.flow if attribute is None else f"{manifest.flow.partition(':')[0]}:{attribute}"
    named = name or manifest.name or re.sub(r"[^A-Za-z0-9.-]+", "-", path.stem).strip("-.")
    manifest = check_manifest(msgspec.structs.replace(manifest, name=named, flow=flow), str(path))
    files = collect(path, manifest.flow)
    folder = path if path.is_dir() else path.parent
    with tempfile.TemporaryDirectory(prefix=".build-", dir=out) as scratch:
        lock, wheels, requires = make_lock(manifest.requires, folder, Path(scratch), bundle=bundle, progress=progress)
        manifest = msgspec.structs.replace(manifest, requires=requires)
        say(f"packing {len(files)} files" + (f" and {len(wheels)} wheels" if wheels else ""))
        target = Path(scratch, f"{wheel_stem(named, manifest.version)}-py3-none-any.whl")
        write_wheel(target, manifest, files, lock, wheels)
        package = open_package(target)
        os.replace(target, out / target.name)
    return msgspec.structs.replace(package, path=out / target.name)


def open_package(path: Path, limits: Limits | None = None) -> Package:
    """Judge a package: every byte is read, nothing is written. Raises `PackageError` that says what is wrong."""
    with open_archive(path, limits or Limits()) as archive:
        package = _judge(archive, path)
        archive.verify()
        return package


def unpack(path: Path, tree: Path, limits: Limits | None = None) -> Package:
    """Judge a package and lay its files down in the new directory `tree`, safe on the disk when this returns.

    All or nothing: `tree` appears complete. What a crash may leave beside it is named `.<tree>.….part`. Raises
    `PackageError`, also when `tree` exists.
    """
    with open_archive(path, limits or Limits()) as archive:
        package = _judge(archive, path)
        if os.path.lexists(tree):
            raise PackageError(f"{tree} is there already", remedy="unpack into a new directory")
        tree.parent.mkdir(parents=True, exist_ok=True)
        with _partial(tree) as partial:
            for name in archive.members:
                _lay_down(archive, name, partial)
            for directory, _, _ in os.walk(partial, topdown=False):
                _sync(directory)
            os.rename(partial, tree)
        _sync(tree.parent)
        return package


def summary(package: Package) -> dict[str, Any]:
    """A package as plain data, for people and for `--json`."""
    manifest = package.manifest
    return {
        "name": manifest.name,
        "group": manifest.group,
        "version": manifest.version,
        "digest": package.digest,
        "size": package.size,
        "flow": manifest.flow,
        "requires": list(manifest.requires),
        "requires_python": manifest.requires_python,
        "recovery": manifest.recovery,
        "replication": manifest.replication,
        "tasks": list(manifest.tasks),
        "bundled": list(package.bundled),
        "config": config_schema(manifest),
    }


def _take_wheel(source: Path, out: Path, name: str | None) -> Package:
    package = open_package(source)
    if name is not None and name != package.manifest.name:
        raise UsageError(
            f"{source.name} is the package of {package.manifest.name!r}, not of {name!r}",
            remedy="build it from its directory to give it another name",
        )
    target = out / source.name
    if not target.exists() or not target.samefile(source):
        partial = out / f".{source.name}.{os.getpid()}.part"
        try:
            shutil.copyfile(source, partial)
            _sync(partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    return msgspec.structs.replace(package, path=target)


def _judge(archive: Archive, path: Path) -> Package:
    """What the package says about itself, checked; the contents of its other files are not read yet."""
    info = archive.dist_info
    wheel = _text(archive, f"{info}/WHEEL").splitlines()
    if not {"Wheel-Version: 1.0", "Root-Is-Purelib: true"} <= set(wheel):
        raise archive.error("it is not a pure wheel", "put compiled code into a wheel of its own and require that")
    manifest = _manifest(archive)
    _check_identity(archive, manifest)
    stem = manifest.flow.partition(":")[0].replace(".", "/")
    if not any(name == f"{stem}.py" or name.startswith(f"{stem}/") for name in archive.members):
        raise archive.error(f"it has no module for its flow {manifest.flow!r}")
    lock = _text(archive, f"{info}/{LOCK_FILE}", LOCK_LIMIT) if f"{info}/{LOCK_FILE}" in archive.members else ""
    return Package(path, archive.digest(), archive.size, manifest, lock, _bundled(archive, manifest, lock))


def _manifest(archive: Archive) -> Manifest:
    name = f"{archive.dist_info}/{MANIFEST_FILE}"
    if name not in archive.members:
        raise archive.error("it is a wheel without a manifest", "build it from its directory: penstock model add DIR")
    try:
        manifest = msgspec.json.decode(archive.read(name, _TEXT_LIMIT), type=Manifest)
        if manifest.name is None:
            raise UsageError("the manifest says no name")
        return check_manifest(manifest, MANIFEST_FILE)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise archive.error(f"{MANIFEST_FILE}: {error}", "build it again with this release of Penstock") from error
    except PackageError:
        raise
    except UsageError as error:
        raise archive.error(error.message, error.remedy) from error


def _check_identity(archive: Archive, manifest: Manifest) -> None:
    """The manifest, METADATA and the directory have to speak of one distribution: installers go by the latter."""
    assert manifest.name is not None
    stem = wheel_stem(manifest.name, manifest.version)
    header = _text(archive, f"{archive.dist_info}/METADATA").replace("\r\n", "\n").partition("\n\n")[0].splitlines()
    said = [[line.partition(":")[2].strip() for line in header if line.lower().startswith(key)] for key in _IDENTITY]
    if [len(values) for values in said] != [1, 1]:
        raise archive.error("METADATA does not say one name and one version")
    try:
        names = {wheel_stem(said[0][0], said[1][0]), archive.dist_info.removesuffix(".dist-info")}
    except UsageError as error:
        raise archive.error(f"METADATA: {error.message}") from error
    if names != {stem}:
        raise archive.error(f"its manifest is of {stem}, the rest of {', '.join(sorted(names - {stem}))}")


def _bundled(archive: Archive, manifest: Manifest, lock: str) -> tuple[str, ...]:
    """The wheels inside. The lock has to be a lock, of what is required, and has to list each of them."""
    try:
        pins = parse_lock(lock)
    except UsageError as error:
        raise archive.error(f"{LOCK_FILE}: {error.message}", error.remedy) from error
    hashes = {one for pin in pins for one in pin.hashes}
    required = [parse_requirement(one) for one in manifest.requires]
    unlocked = {one.name for one in required if one.marker is None} - {pin.name for pin in pins} - {"penstock"}
    if unlocked:
        raise archive.error(f"it requires {', '.join(sorted(unlocked))}, which {LOCK_FILE} does not list")
    prefix = f"{archive.dist_info}/{WHEELS}/"
    wheels = sorted(name for name in archive.members if name.startswith(prefix))
    for name in wheels:
        try:
            wheel_parts(name.removeprefix(prefix))
        except UsageError:
            raise archive.error(f"{name} is not a wheel") from None
        if archive.sha256(name) not in hashes:
            raise archive.error(f"{name} is not a wheel that {LOCK_FILE} lists")
    return tuple(name.removeprefix(prefix) for name in wheels)


def _text(archive: Archive, name: str, limit: int = _TEXT_LIMIT) -> str:
    if name not in archive.members:
        raise archive.error(f"it has no {name}")
    try:
        return archive.read(name, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise archive.error(f"{name} is not UTF-8") from error


@contextmanager
def _partial(tree: Path) -> Iterator[Path]:
    """A directory beside `tree` that is gone afterwards, unless it became `tree`."""
    partial = Path(tempfile.mkdtemp(prefix=f".{tree.name}.", suffix=".part", dir=tree.parent))
    try:
        partial.chmod(0o755)
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _lay_down(archive: Archive, name: str, directory: Path) -> None:
    target = directory / name
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(descriptor, "wb") as file:
        for chunk in archive.chunks(name):
            file.write(chunk)
        file.flush()
        os.fsync(descriptor)


def _sync(path: Path | str) -> None:
    """Make a file's content, or the names in a directory, safe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
