from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from decimal import Decimal

import msgspec
import pytest

from penstock.connectors.json_lines import encode, encode_lines, text_lines
from penstock.errors import CodecError
from penstock.flow.batch import Keyed


class Point(msgspec.Struct):
    x: int


@dataclass
class Fix:
    at: dt.datetime
    point: Point


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (Keyed("a", 1), {"key": "a", "value": 1}),
        (Keyed(("a", 1), Keyed("b", [2])), {"key": ["a", 1], "value": {"key": "b", "value": [2]}}),
        (Fix(dt.datetime(2024, 1, 2, tzinfo=dt.UTC), Point(3)), {"at": "2024-01-02T00:00:00Z", "point": {"x": 3}}),
        (b"\x00\xff", "AP8="),
        ((1, {2}), [1, [2]]),
        (Decimal("1.50"), "1.50"),
        (float("nan"), None),
        ({1: "a"}, {"1": "a"}),
        ({("a", 1): 2, b"k": 3, "n": {(1, 2): Point(1)}}, {'["a",1]': 2, "aw==": 3, "n": {"[1,2]": {"x": 1}}}),
        (2**70, 2**70),
        ("ä\n", "ä\n"),
    ],
)
def test_values(record, expected):
    assert json.loads(encode(record)) == expected
    lines = encode_lines([record, 5]).splitlines()
    assert [json.loads(line) for line in lines] == [expected, 5]


def test_what_json_cannot_express_is_named():
    with pytest.raises(CodecError, match=r"builtins\.object|object"):
        encode({"a": object()})
    with pytest.raises(CodecError, match="complex"):
        encode_lines([1, complex(1)])


def test_text_lines_stay_lines():
    assert text_lines(["a", "b\nc\r", 5, Keyed("k", 1)]) == b'a\nb\\nc\\r\n5\n{"key":"k","value":1}\n'
    assert text_lines(["a", "b"]) == b"a\nb\n"
    assert text_lines(["a\nb"]) == b"a\\nb\n"
    assert text_lines([]) == b""
    assert text_lines(["\udcff"]) == b"\\udcff\n"
