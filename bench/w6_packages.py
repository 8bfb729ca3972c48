"""The packages of W6: a flow that notes when its first record arrives, and one that needs an environment of its own."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from penstock.model.package import Package, build

MODULE = '''\
"""Records at a steady rate through one shuffle; the sink notes when the first one arrives (monotonic ns)."""

import os
import time
from dataclasses import dataclass

import penstock as ps
{imports}
ARRIVED = {arrived!r}
ps.config.defaults(note="")


class FirstWriter(ps.Writer):
    def __init__(self):
        self.seen = False

    def write(self, records):
        if not self.seen:
            self.seen = True
            line = b"%d\\n" % time.monotonic_ns()
            out = os.open(ARRIVED, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(out, line)
            finally:
                os.close(out)


@dataclass(frozen=True)
class First(ps.Sink):
    def open(self, ctx):
        return FirstWriter()


flow = ps.Flow({name!r})
(
    flow.source("numbers", ps.sequence(rate=1000))
    .key_by("key", lambda number: number % 100)
    .count("count")
    .sink("out", First())
)
'''
PROJECT = """\
[project]
name = "{name}"
version = "{version}"
dependencies = [{dependencies}]

[tool.penstock]
flow = "first_record:flow"
"""


def package(folder: Path, name: str, arrived: Path, version: str = "1", dependency: Path | None = None) -> Package:
    """A model that appends to the file `arrived` when its first record is there; with `dependency`, a wheel that it
    imports and carries along. Equal arguments give an equal package."""
    source = folder / f"{name}-{version}"
    source.mkdir(parents=True)
    required = imports = ""
    if dependency is not None:
        distribution, of, *_ = dependency.name.split("-")
        (source / "wheels").mkdir()
        os.link(dependency, source / "wheels" / dependency.name)
        required, imports = f'"{distribution}=={of}"', f"import {distribution}\n"
    (source / "first_record.py").write_text(MODULE.format(name=name, arrived=str(arrived), imports=imports))
    (source / "pyproject.toml").write_text(PROJECT.format(name=name, version=version, dependencies=required))
    with _without_index():
        return build(source, folder)


@contextlib.contextmanager
def _without_index() -> Iterator[None]:
    """Inside, nothing is asked of the network."""
    settings = {"UV_NO_INDEX": "1", "UV_OFFLINE": "1"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def tiny_wheel(folder: Path, version: str) -> Path:
    """A wheel with one module of one line."""
    name = f"tinydependency-{version}"
    info = f"{name}.dist-info"
    files = {
        "tinydependency.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tinydependency\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={_sha256(text)},{len(text)}\n" for path, text in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for inside, text in files.items():
            wheel.writestr(inside, text)
    return path


def _sha256(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
