"""The example of docs/connectors.md, run as it is printed there."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
from tests.connectors.conftest import read_all

import penstock as ps
from penstock.connectors.registry import CONNECTORS

PAGE = Path(__file__).parents[2] / "docs" / "connectors.md"


@pytest.fixture
def letters(monkeypatch):
    """The page's program as a module."""
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "# letters.py" in block
    )
    module = types.ModuleType("letters")
    monkeypatch.setitem(sys.modules, "letters", module)
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    return module


def test_the_source_continues_after_an_offset(letters, ctx):
    source = letters.Letters((("first", "one two three"),))
    reader = source.open("first", None, ctx)
    assert reader.read(2) == ["one", "two"]
    assert read_all(source.open("first", reader.offset(), ctx)) == ["three"]


def test_the_sink_shows_what_was_committed_and_continues(letters, ctx, tmp_path):
    path = tmp_path / "longest.txt"
    ctx = replace(ctx, checkpointed=True)
    writer = letters.Longest(str(path)).open(ctx)
    writer.write(["a", "abc"])
    pending = writer.prepare(1)
    writer.write(["abcdef"])
    writer.flush()
    assert not path.exists()
    writer.commit(pending)
    assert path.read_text() == "abc"
    restored = letters.Longest(str(path)).open(ctx)
    restored.recover([pending])
    restored.write(["ab"])
    restored.close()
    assert path.read_text() == "abc"


def test_the_flow_can_be_built(letters, tmp_path):
    graph = letters.letters_flow(str(tmp_path / "x")).build()
    assert list(graph.steps) == ["words", "longest"]
    assert graph.topology.bounded


def test_the_program_has_a_flow_that_runs_as_the_page_says(letters):
    run = ps.testing.run(letters.flow)
    assert max(run.outputs["longest"], key=len) == "considerable"
    assert "`longest.txt` holds `considerable`" in PAGE.read_text()


def test_the_page_names_every_connector():
    table = PAGE.read_text()
    assert [name for name in CONNECTORS if f"| `{name}(" not in table] == []
    assert all(callable(getattr(ps, name)) for name in CONNECTORS)
