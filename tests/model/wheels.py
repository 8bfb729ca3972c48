"""Tiny wheels, models and broken packages, made on the spot."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

FLOW = """
import penstock as ps

flow = ps.Flow("tiny")
flow.source("in", ps.push()).map("same", lambda r: r).sink("out", ps.stdout())
"""
MANIFEST = b'{"name": "tiny", "version": "1", "flow": "tiny:flow"}'


def dependency(folder: Path, name: str, version: str, *requires: str) -> Path:
    """A wheel with one module that knows its version."""
    info = f"{name}-{version}.dist-info"
    metadata = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        *(f"Requires-Dist: {r}\n" for r in requires),
    ]
    files = {
        f"{name}.py": f"VERSION = {version!r}\n".encode(),
        f"{info}/METADATA": "".join(metadata).encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    return pack(folder / f"{name}-{version}-py3-none-any.whl", files, info)


def good_files(**more: bytes) -> dict[str, bytes]:
    """The files of a package, without RECORD."""
    return {
        "tiny.py": FLOW.encode(),
        "tiny-1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1\n",
        "tiny-1.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny-1.dist-info/penstock.json": MANIFEST,
        **more,
    }


def record_of(files: Mapping[str, bytes], info: str = "tiny-1.dist-info") -> bytes:
    """RECORD for these files."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        writer.writerow([name, f"sha256={digest}", len(content)])
    writer.writerow([f"{info}/RECORD", "", ""])
    return text.getvalue().encode()


def pack(
    target: Path,
    files: Mapping[str, bytes],
    info: str = "tiny-1.dist-info",
    *,
    record: bytes | None = None,
    change: Callable[[zipfile.ZipInfo], None] = lambda info: None,
) -> Path:
    """A zip file of these files and their RECORD; `change` alters the header of each."""
    contents = {**files, f"{info}/RECORD": record_of(files, info) if record is None else record}
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            change(entry)
            archive.writestr(entry, content)
    return target


def project(folder: Path, toml: str, files: Mapping[str, str]) -> Path:
    """A model's directory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(toml)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
