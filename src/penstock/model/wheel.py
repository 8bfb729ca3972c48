"""Making the wheel of a package: which of the author's files go in, and how it is written.

Its bytes depend on its content alone: names are sorted, times and modes fixed (PEP 427 for the layout). Equal sources
give equal bytes wherever Python is linked with the same zlib; elsewhere the compressed form may differ.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

from penstock.errors import UsageError
from penstock.model.archive import fault_of_file
from penstock.model.lock import LOCK_FILE
from penstock.model.manifest import MANIFEST_FILE, Manifest
from penstock.model.requirement import normalized_name, normalized_version, wheel_stem

__all__ = ["WHEELS", "collect", "write_wheel"]

WHEELS = "wheels"
"""The directory of the wheels that a package carries, in its .dist-info."""

_TIME = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644 << 16
_CHUNK = 1 << 18
_COMPILED = (".so", ".pyd", ".dylib", ".dll")
_NEVER = ("__pycache__", "node_modules")
_BESIDES = "tests test docs doc examples build dist wheels venv env scripts tools setup.py conftest.py noxfile.py"
"""What stands beside a package in a project without `src/` and is not part of it."""


def collect(source: Path, flow: str) -> dict[str, Path]:
    """The importable code, and the data inside it, by name in the package.

    A single file is one module. Of a directory with `src/` it is everything in there; of another the modules and the
    packages at the top, without tests, documentation and tools. Never: hidden files, caches, compiled code. Raises
    `UsageError` when the module of `flow` is not among them, or a file cannot be part of a package.
    """
    if source.is_file():
        files = {source.name: source}
    else:
        root = source.resolve() / "src"
        flat = not root.is_dir()
        root = source.resolve() if flat else root
        files = dict(sorted(_files(root, flat, flow.partition(":")[0].partition(".")[0])))
    _check(source, files, flow.partition(":")[0])
    return files


def _files(root: Path, flat: bool, flow_top: str) -> Iterator[tuple[str, Path]]:
    for entry in sorted(root.iterdir()):
        if _left_out(entry):
            continue
        if flat and entry.name not in (flow_top, f"{flow_top}.py"):
            part = entry.suffix == ".py" if entry.is_file() else (entry / "__init__.py").is_file()
            if not part or entry.name in _BESIDES.split():
                continue
        yield from _below(entry, root)


def _below(entry: Path, root: Path) -> Iterator[tuple[str, Path]]:
    """The file, or all files in the directory."""
    if entry.is_symlink() and (entry.is_dir() or root not in entry.resolve().parents):
        where = "a directory" if entry.is_dir() else f"something outside of {root}"
        raise UsageError(f"{entry} is a link to {where}", remedy="put the files themselves there")
    if entry.is_dir():
        for inner in sorted(entry.iterdir()):
            if not _left_out(inner):
                yield from _below(inner, root)
    elif entry.is_file():
        yield entry.relative_to(root).as_posix(), entry
    else:
        raise UsageError(f"{entry} is not a plain file", remedy="remove it")


def _left_out(entry: Path) -> bool:
    name = entry.name
    if name.startswith(".") or name in _NEVER or name.endswith((".pyc", ".pyo", ".egg-info", ".dist-info", "~")):
        return True
    return (entry / "pyvenv.cfg").is_file()


def _check(source: Path, files: dict[str, Path], module: str) -> None:
    for name, path in files.items():
        if fault := fault_of_file(name):
            raise UsageError(f"{path} {fault}")
        if name.endswith(_COMPILED):
            raise UsageError(
                f"{path} is compiled code", remedy="make it a wheel of its own, require it, and put it into wheels/"
            )
    stem = module.replace(".", "/")
    if not any(name in (f"{stem}.py", f"{stem}/__init__.py") or name.startswith(f"{stem}/") for name in files):
        modules = sorted({name.partition("/")[0].removesuffix(".py") for name in files if name.endswith(".py")})
        there = f"there are: {', '.join(modules[:8])}" if modules else "there is no Python file"
        raise UsageError(
            f"{source} has no module {module!r} for its flow", remedy=f"correct [tool.penstock] flow; {there}"
        )


def write_wheel(
    target: Path, manifest: Manifest, files: Mapping[str, Path], lock: str, wheels: Mapping[str, Path]
) -> None:
    """Write the package: `files` by their names in the archive, the lock when there is one, and carried `wheels`."""
    assert manifest.name is not None
    info = f"{wheel_stem(manifest.name, manifest.version)}.dist-info"
    contents: dict[str, Path | bytes] = dict(files)
    contents[f"{info}/METADATA"] = _metadata(manifest)
    contents[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: penstock\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    contents[f"{info}/{MANIFEST_FILE}"] = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    if lock:
        contents[f"{info}/{LOCK_FILE}"] = lock.encode()
    for name, path in wheels.items():
        contents[f"{info}/{WHEELS}/{name}"] = path
    with open(target, "w+b") as file:
        _write(file, contents, f"{info}/RECORD")
        file.flush()
        os.fsync(file.fileno())


def _write(file: BinaryIO, contents: Mapping[str, Path | bytes], record_name: str) -> None:
    record = io.StringIO()
    with zipfile.ZipFile(file, "w", allowZip64=False) as archive:
        # What describes the package stands last, as PEP 427 recommends.
        for name in sorted(contents, key=lambda name: (".dist-info/" in name, name)):
            content = contents[name]
            with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as source:
                digest, size = _add(archive, name, source)
            record.write(f"{_quoted(name)},sha256={digest},{size}\n")
        record.write(f"{_quoted(record_name)},,\n")
        _add(archive, record_name, io.BytesIO(record.getvalue().encode()))


def _add(archive: zipfile.ZipFile, name: str, source: BinaryIO) -> tuple[str, int]:
    """Put in a file; its SHA-256 as RECORD writes it, and its size."""
    info = zipfile.ZipInfo(name, _TIME)
    info.create_system, info.external_attr = 3, _MODE
    info.compress_type = zipfile.ZIP_STORED if name.endswith(".whl") else zipfile.ZIP_DEFLATED
    digest, size = hashlib.sha256(), 0
    with archive.open(info, "w") as member:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            member.write(chunk)
    return base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode(), size


def _metadata(manifest: Manifest) -> bytes:
    assert manifest.name is not None
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {normalized_name(manifest.name)}",
        f"Version: {normalized_version(manifest.version)}",
        "Summary: A model for Penstock",
    ]
    if manifest.requires_python:
        lines.append(f"Requires-Python: {manifest.requires_python}")
    lines += [f"Requires-Dist: {requirement}" for requirement in manifest.requires]
    return ("\n".join(lines) + "\n").encode()


def _quoted(name: str) -> str:
    return f'"{name}"' if "," in name else name
