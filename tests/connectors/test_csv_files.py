from __future__ import annotations

import csv as stdlib_csv
import io
from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.connectors.conftest import read_all

from penstock.clock import FakeClock
from penstock.connectors import csv
from penstock.errors import ConnectorError, UsageError
from penstock.flow.connector import ConnectorContext


def rows(path, ctx, **options):
    return read_all(csv(path, **options).open(str(path), None, ctx))


def test_header_names_columns(tmp_path, ctx):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfname,value\r\na,1\r\n\r\nb,2\r\nname,value\r\nc,3")
    assert rows(path, ctx) == [{"name": "a", "value": "1"}, {"name": "b", "value": "2"}, {"name": "c", "value": "3"}]


def test_without_header(tmp_path, ctx):
    path = tmp_path / "a.csv"
    path.write_text("a;1\nb;2\n")
    assert rows(path, ctx, header=False, delimiter=";") == [["a", "1"], ["b", "2"]]
    assert rows(path, ctx, header=["k", "v"], delimiter=";") == [{"k": "a", "v": "1"}, {"k": "b", "v": "2"}]


def test_types(tmp_path, ctx, skipped):
    path = tmp_path / "a.csv"
    path.write_text("at,ok,v\n2024-01-02T03:04:05,yes,1.5\n2024-01-02T03:04:06,no,high\n")
    ctx.on_bad_record = skipped
    types = {"at": datetime, "ok": bool, "v": float}
    assert rows(path, ctx, types=types) == [{"at": datetime(2024, 1, 2, 3, 4, 5), "ok": True, "v": 1.5}]
    assert "line 3: column 'v' cannot be converted" in skipped.errors[0]
    with pytest.raises(ConnectorError, match="has no column"):
        rows(path, ctx, types={"w": float})


def test_quoted_line_ends_across_blocks(tmp_path, ctx, monkeypatch):
    monkeypatch.setattr("penstock.connectors.block_reader.BLOCK_BYTES", 16)
    path = tmp_path / "a.csv"
    path.write_text('k,v\na,"one\ntwo, ""three""\n\n' + "x" * 50 + '\n"\nb,plain\n')
    expected = [{"k": "a", "v": 'one\ntwo, "three"\n\n' + "x" * 50 + "\n"}, {"k": "b", "v": "plain"}]
    assert rows(path, ctx) == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=st.lists(
        st.tuples(*[st.text(st.sampled_from('ab",\nä '), max_size=8)] * 2).filter(lambda r: r != ("", "")), max_size=20
    ),
    block=st.integers(4, 60),
    limit=st.integers(1, 5),
)
def test_every_offset_continues_exactly(tmp_path, monkeypatch, table, block, limit):
    monkeypatch.setattr("penstock.connectors.block_reader.BLOCK_BYTES", block)
    ctx = ConnectorContext("flow", "step", clock=FakeClock())
    text = io.StringIO()
    stdlib_csv.writer(text, lineterminator="\n").writerows([("k", "v"), *table])
    path = tmp_path / "h.csv"
    path.write_text(text.getvalue(), newline="")
    expected = [{"k": k, "v": v} for k, v in table]
    source = csv(path)
    reader = source.open(str(path), None, ctx)
    seen = []
    while len(seen) < len(expected):
        seen += reader.read(limit)
        assert seen + read_all(source.open(str(path), reader.offset(), ctx)) == expected
    reader.close()
    assert seen == expected


def test_malformed_rows_by_policy(tmp_path, ctx, skipped):
    path = tmp_path / "a.csv"
    path.write_bytes(b'k,v\na,1\nshort\nb,2,3\n"x"y,1\nc,\xff\nd,4\n"never closed,5\ne,6\n')
    with pytest.raises(ConnectorError, match="line 3: 1 fields where the header names 2: 'short'"):
        rows(path, ctx)
    ctx.on_bad_record = skipped
    assert rows(path, ctx) == [{"k": "a", "v": "1"}, {"k": "d", "v": "4"}, {"k": "e", "v": "6"}]
    assert [error.split(": ")[0].rpartition(", ")[2] for error in skipped.errors] == [
        "line 3",
        "line 4",
        "line 5",
        "byte 29",
        "line 8",
    ]


def test_a_stray_quote_in_a_long_file_spoils_its_line_only(tmp_path, ctx, skipped):
    ctx.on_bad_record = skipped
    path = tmp_path / "a.csv"
    path.write_text("k,v\n" + "a,1\n" * 10 + '"stray,1\n' + "b,2\n" * 200_000)
    assert len(rows(path, ctx)) == 200_010
    assert skipped.raw == ['"stray,1']


def test_impossible_options(tmp_path, ctx):
    with pytest.raises(UsageError, match="one character"):
        csv("a.csv", delimiter="ab")
    with pytest.raises(UsageError, match="needs column names"):
        csv("a.csv", header=False, types={"a": int})
    path = tmp_path / "twice.csv"
    path.write_text("a,a\n1,2\n")
    with pytest.raises(ConnectorError, match="more than once"):
        rows(path, ctx)
