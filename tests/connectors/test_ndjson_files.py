from __future__ import annotations

import gzip
import json

import msgspec
import pytest
from tests.connectors.conftest import read_all

from penstock.connectors import ndjson
from penstock.errors import ConnectorError
from penstock.flow.batch import Keyed


def test_values_of_every_line(tmp_path, ctx):
    path = tmp_path / "a.ndjson"
    path.write_bytes(b'\xef\xbb\xbf{"a":1}\r\n\n [2, 3]\n"x"\nnull')
    assert read_all(ndjson(path).open(str(path), None, ctx)) == [{"a": 1}, [2, 3], "x", None]


@pytest.mark.parametrize("blank", [False, True])
def test_every_offset_continues_exactly(tmp_path, ctx, blank):
    lines = [json.dumps({"n": i, "text": "ü" * (i % 30)}, ensure_ascii=False) for i in range(400)]
    path = tmp_path / "a.ndjson.gz"
    path.write_bytes(gzip.compress(("\n\n" if blank else "\n").join(lines).encode()))
    expected = list(map(json.loads, lines))
    source = ndjson(path)
    reader = source.open(str(path), None, ctx)
    seen = 0
    while seen < len(expected):
        seen += len(reader.read(7))
        assert read_all(source.open(str(path), reader.offset(), ctx)) == expected[seen:]
    reader.close()


def test_malformed_lines_by_policy(tmp_path, ctx, skipped):
    path = tmp_path / "a.ndjson"
    path.write_bytes(b'{"a":1}\n{"a":\n{"a":2} {"a":3}\n\xff\n{"a":4}\n')
    with pytest.raises(ConnectorError, match=r"line 2 \(byte 8\): not JSON"):
        read_all(ndjson(path).open(str(path), None, ctx))
    ctx.on_bad_record = skipped
    assert read_all(ndjson(path).open(str(path), None, ctx)) == [{"a": 1}, {"a": 4}]
    assert skipped.raw == [b'{"a":', b'{"a":2} {"a":3}', b"\xff"]


class Reading(msgspec.Struct):
    sensor: str
    value: float


def test_lines_of_a_type(tmp_path, ctx, skipped):
    path = tmp_path / "a.ndjson"
    path.write_text('{"sensor":"a","value":1}\n{"sensor":"b","value":"high"}\n')
    ctx.on_bad_record = skipped
    assert read_all(ndjson(path, type=Reading).open(str(path), None, ctx)) == [Reading("a", 1.0)]
    assert "not of the expected type" in skipped.errors[0]
    assert "value" in skipped.errors[0]


def test_follow(tmp_path, ctx):
    path = tmp_path / "a.ndjson"
    path.write_text('{"a":1}\n{"a"')
    reader = ndjson(path, follow=True).open(str(path), None, ctx)
    assert reader.read(9) == [{"a": 1}]
    assert reader.read(9) == []
    with path.open("a") as out:
        out.write(":2}\n")
    assert reader.read(9) == [{"a": 2}]
    reader.close()


def test_written_records_read_back(tmp_path, ctx):
    path = tmp_path / "out.ndjson"
    writer = ndjson(path).open(ctx)
    writer.write([Keyed("a", 1), {"b": 2}])
    writer.close()
    assert read_all(ndjson(path).open(str(path), None, ctx)) == [{"key": "a", "value": 1}, {"b": 2}]
