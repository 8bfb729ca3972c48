from __future__ import annotations

import subprocess
import sys

import pytest
from mypy import api

import penstock as ps
from penstock.connectors.registry import CONNECTORS

HEAVY = ("polars", "fastapi", "sqlalchemy", "zmq", "uvicorn", "redis", "httpx", "asyncio", "typer", "rich")


def test_importing_the_flow_api_is_light():
    code = f"import sys, penstock as ps; ps.Flow('f'); print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(CONNECTORS))
def test_every_connector_is_at_hand(name):
    assert callable(getattr(ps, name))
    assert name in ps.__all__


def test_everything_announced_exists():
    assert [name for name in ps.__all__ if not hasattr(ps, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ps.nothing  # noqa: B018


RIGHT = """
import penstock as ps
s = ps.Flow("f").source("in", ps.iterable([1, 2]))
words = s.map("text", lambda r: str(r)).flat_map("split", str.split)
counts = words.key_by("w", lambda w: w).count("n")
totals = counts.key_by("all", lambda r: 0).fold("sum", 0.0, lambda t, r: (t + r.value, t))
stats = words.key_by("w2", len).window(ps.tumbling("1s"), on=lambda w: 3).aggregate("a", n=ps.count())
late = stats.late
means = stats.map("n", lambda r: r["n"]).key_by("n2", lambda n: n).count("windows")
pairs = counts.join("j", means, within="1s", on=lambda v: v)
lonely = pairs.late.count("late")
flow: ps.Flow = totals.map("v", lambda r: r.value).sink("out", ps.stdout())
"""
WRONG = {
    'ps.Flow("f").source("in", ps.iterable([1])).count("n")': 'has no attribute "count"',
    'ps.Flow("f").source("in", ps.stdout())': "Argument 2",
    'ps.Flow("f").source("in", ps.iterable([1])).sink("out", ps.sequence(3))': "Argument 2",
    'ps.Flow("f").source("in", ps.iterable([1])).map("a", str).map("b", lambda t: t.nope)': 'has no attribute "nope"',
    'ps.Flow("f").source("in", ps.iterable([1])).key_by("k", str).count("n", emit="often")': "emit",
    """ps.Flow("f").source("in", ps.iterable([])).key_by("k", str).window(ps.session(1)).aggregate("a").count("n")""": (
        'has no attribute "count"'
    ),
    'ps.Flow("f", on_error="ignore")': "on_error",
}


def test_misuse_does_not_type_check(tmp_path):
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(RIGHT)
    bad.write_text("import penstock as ps\n" + "\n".join(WRONG) + "\n")
    out, _, status = api.run(["--strict", "--no-error-summary", "--hide-error-context", str(good), str(bad)])
    assert status == 1
    found = [line for line in out.splitlines() if ": error:" in line]
    assert [line for line in found if "good.py" in line] == []
    for number, text in enumerate(WRONG.values(), start=2):
        assert any(f"bad.py:{number}: error" in line and text in line for line in found), (text, out)
