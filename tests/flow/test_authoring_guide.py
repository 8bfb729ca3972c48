"""The code of docs/authoring.md works, and its errors read as printed there."""

from __future__ import annotations

import linecache
import re
from pathlib import Path

import pytest

import penstock as ps
from penstock.flow.config import install

GUIDE = (Path(__file__).parents[2] / "docs" / "authoring.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
PROGRAMS = [code for language, kind, code in BLOCKS if language == "python" and not kind]
ERRORS = [
    (kind.strip(), code, BLOCKS[i + 1][2])
    for i, (language, kind, code) in enumerate(BLOCKS)
    if language == "python" and kind
]


@pytest.fixture(autouse=True)
def _settings():
    yield
    install({})


def execute(code):
    linecache.cache["flow.py"] = (len(code), None, code.splitlines(keepends=True), "flow.py")
    names = {"__name__": "flow"}
    exec(compile(code, "flow.py", "exec"), names)
    return names["flow"]


@pytest.mark.parametrize("code", PROGRAMS)
def test_the_programs_of_the_guide_build(code):
    assert execute(code).build().topology.stages


def run_or_build(kind, code):
    flow = execute(code)
    return ps.testing.run(flow) if kind == "run-error" else flow.build()


@pytest.mark.parametrize(("kind", "code", "text"), ERRORS)
def test_the_errors_of_the_guide_read_as_printed(kind, code, text):
    with pytest.raises(ps.PenstockError) as caught:
        run_or_build(kind, code)
    assert str(caught.value) == text.rstrip("\n")


def test_the_guide_names_every_step():
    methods = [name for kind in (ps.Stream, ps.KeyedStream) for name in vars(kind) if not name.startswith("_")]
    assert [name for name in methods if name != "flow" and f".{name}(" not in GUIDE] == []
