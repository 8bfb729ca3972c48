"""Packages for tests, made as users make them."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from penstock.model.package import build

SCRIPT = """\
# /// script
# dependencies = []
#
# [tool.penstock]
# name = "{name}"
# version = "{version}"
#
# [tool.penstock.config]
# n = {{ default = 1, description = "how many" }}
# ///
import penstock as ps

flow = ps.Flow("{name}")
flow.source("in", ps.push()).key_by("word", lambda word: word).count("count").sink("out", ps.collect())
"""


def write_flow(folder: Path, name: str = "words", version: str = "1.0") -> Path:
    """A flow in a file."""
    path = folder / f"{name}.py"
    path.write_text(SCRIPT.format(name=name, version=version))
    return path


@cache
def package(name: str = "words", version: str = "1.0") -> bytes:
    """The bytes of its package."""
    with tempfile.TemporaryDirectory() as folder:
        return build(write_flow(Path(folder), name, version), Path(folder)).path.read_bytes()
