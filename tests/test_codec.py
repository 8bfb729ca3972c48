"""Whatever travels arrives as it was sent."""

import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import codec
from penstock.errors import CodecError
from penstock.flow.batch import Keyed


class Point(msgspec.Struct):
    x: int
    tags: tuple[str, ...] = ()


class KwOnly(msgspec.Struct, kw_only=True):
    a: Any
    b: Any = None


@dataclasses.dataclass
class Reading:
    sensor: str
    at: dt.datetime
    position: Point | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen:
    a: int


class Pair(NamedTuple):
    left: Any
    right: Any


class Colour(enum.Enum):
    RED = "r"
    GREEN = "g"


atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.just(dt.UTC) | st.none())
    | st.dates()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.sampled_from(Colour)
    | st.builds(Point, st.integers())
)
keys = st.text() | st.integers() | st.tuples(st.text(), st.integers())
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.builds(Keyed, keys, inner)
        | st.builds(Pair, inner, inner)
        | st.builds(KwOnly, a=inner)
        | st.sets(st.integers() | st.text(), max_size=3)
    ),
    max_leaves=8,
)


def travel(sent: list[Any]) -> list[Any]:
    return codec.unpack(codec.decode(codec.encode(codec.pack(sent))))


def types(value: Any) -> Any:
    if isinstance(value, dict):
        return dict, sorted(map(repr, map(types, value))), list(map(types, value.values()))
    if isinstance(value, list | tuple):
        return type(value), list(map(types, value))
    return type(value)


@given(st.lists(values, max_size=6))
def test_values_arrive_as_they_were_sent_with_their_types(sent: list[Any]) -> None:
    got = travel(sent)
    assert got == sent
    assert list(map(types, got)) == list(map(types, sent))


def test_structs_dataclasses_and_nested_ones() -> None:
    at = dt.datetime(2020, 1, 2, 3, 4, 5, 6)
    sent = [Reading("a", at, Point(1, ("x", "y"))), Reading("b", at)]
    assert travel(sent) == sent
    assert travel([Frozen(a=1)]) == [Frozen(a=1)]


def test_plain_columns_stay_plain() -> None:
    assert codec.pack(["a", "b"]) == ["p", ["a", "b"]]
    assert codec.pack([{"a": 1, "b": [1.5, None]}])[0] == "p"


def test_a_value_that_cannot_travel_is_named() -> None:
    with pytest.raises(CodecError, match=r"type builtins\.object cannot travel"):
        codec.pack([object()])


def test_a_class_nobody_knows_is_named() -> None:
    node = ["s", "nowhere:Thing", 1, ["a"], [["p", [1]]]]
    with pytest.raises(CodecError, match="nowhere:Thing"):
        codec.unpack(node)


def test_decoding_never_calls_what_is_not_a_record_class() -> None:
    with pytest.raises(CodecError):
        codec.unpack(["s", "os:system", 1, ["command"], [["p", ["true"]]]])


@pytest.mark.parametrize("bad", [b"", b"\xc1", b"\x93\xa1x\x01\x02", b"\x92\xa1q\x01"])
def test_other_bytes_are_refused(bad: bytes) -> None:
    with pytest.raises(CodecError):
        codec.loads(bad)


def test_single_values() -> None:
    for value in (("a", 1), decimal.Decimal("1.50"), uuid.UUID(int=5), 2**70, {1: (2,)}):
        assert codec.loads(codec.dumps(value)) == value
