"""Key hashes are a promise to every checkpoint ever written."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, namedtuple
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ExchangeError
from penstock.exchange import keys as keys_module
from penstock.exchange.keys import Router, even_routing, key_group, key_hash, owned_groups, owner
from penstock.settings import KEY_GROUPS


class Colour(Enum):
    RED = 1


class Level(IntEnum):
    HIGH = 3


class Word(StrEnum):
    HELLO = "hello"


@dataclass(frozen=True)
class Cell:
    x: int
    y: float
    note: str = field(default="", compare=False)


class Sensor(msgspec.Struct, frozen=True):
    name: str
    unit: int


Pair = namedtuple("Pair", "a b")

PINNED = [
    ("", 0x2D06800538D394C2),
    ("hello", 0x9555E8555C62DCFD),
    ("Zürich \U0001f600", 0xEC9D503B89B75901),
    (0, 0x852BB0D8B770115C),
    (1, 0xB35E5CC2BB89A591),
    (-1, 0x32A8C5635C8B0060),
    (255, 0xBE08018FBDAF8770),
    (10**30, 0xD22EABBAE4AF3B01),
    (2.5, 0xCC291E45F359C036),
    (float("inf"), 0xF900E3C2D889FB0C),
    (b"", 0x1EE11A1315AA365C),
    (b"hello", 0x78106EC28E1EB5D3),
    (None, 0x4D4B413ED14F19F6),
    ((), 0xFAAF6157F5843307),
    (("a", 1), 0x8F3764CE1BC710B9),
    (("a", ("b", None)), 0x6F3A1A1C4A985E9B),
    ("\udc80", 0x0CF1D0859A1BEA02),
    (date(2024, 2, 29), 0x4BC3E7782BBED9F7),
    (datetime(2024, 2, 29, 12, 30, 1, 5), 0xF9C3872CDAC6424A),
    (datetime(2024, 2, 29, 12, 30, tzinfo=UTC), 0x1D15BA5965E321E8),
    (Colour.RED, 0xB4A163DF560E1EC2),
    (Cell(1, 2.5), 0xF88ED676F8034663),
    (Sensor("a", 1), 0xA5B27C0F7BAE89FE),
    (UUID(int=5), 0x17AAD19B36F1B29F),
    (Decimal("0.1"), 0x3DBE131A00C4C13A),
]

EQUAL = [
    (1, 1.0, True, Level(3) - 2),
    (0, 0.0, -0.0, False),
    (2**70, float(2**70)),
    (-5, -5.0, Decimal("-5.0")),
    (0.5, Decimal("0.50")),
    (Decimal("0.1"), Decimal("0.10")),
    (float("inf"), Decimal("inf")),
    (3, Level.HIGH),
    ("hello", Word.HELLO),
    ((1, "a"), Pair(1, "a"), (1.0, "a"), (True, "a")),
    (Cell(1, 2.0), Cell(1, 2, note="other")),
    (
        datetime(2024, 3, 1, 12, tzinfo=UTC),
        datetime(2024, 3, 1, 14, tzinfo=timezone(timedelta(hours=2))),
    ),
    (datetime(2024, 10, 27, 2, 30), datetime(2024, 10, 27, 2, 30, fold=1)),
]

DIFFERENT = [
    "1", b"1", 1, 1.5, None, (), ("",), (1,), ((1,),), (1, 2), ("1", "2"), ("12",), "12", -1, 255, -256, 256, 2**64,
    -(2**64), float("inf"), float("-inf"), date(2024, 3, 1), datetime(2024, 3, 1),
    datetime(2024, 3, 1, tzinfo=UTC), Colour.RED, ("Colour", "RED"), Cell(1, 2), Sensor("a", 1), ("Sensor", "a", 1),
    (None,), (b"1",), "\udc80", "\x00", b"",
    Decimal("0.1"), 0.1, UUID(int=1), UUID(int=1).bytes,
]  # fmt: skip


@pytest.mark.parametrize("same", EQUAL, ids=str)
def test_equal_keys_hash_equal(same):
    assert len(set(same)) == 1, "the test itself: Python must call them equal"
    assert len({key_hash(key) for key in same}) == 1


def test_different_keys_hash_differently():
    assert len({key_hash(key) for key in DIFFERENT}) == len(DIFFERENT)


def test_nan_is_one_key():
    assert key_hash(float("nan")) == key_hash(-float("nan"))


@pytest.mark.parametrize(("key", "expected"), PINNED, ids=lambda v: repr(v))
def test_hash_values_are_pinned(key, expected):
    assert key_hash(key) == expected
    assert key_group(key) == expected % 256


def test_another_process_hashes_the_same():
    code = "from penstock.exchange.keys import key_hash as h; print(h('a'), h(('a', 1.5, None)), h(-(10**30)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.split() == [str(key_hash(key)) for key in ("a", ("a", 1.5, None), -(10**30))]


numbers = st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans())
atoms = st.one_of(numbers, st.text(max_size=5), st.binary(max_size=5), st.none(), st.dates(), st.datetimes())
nested = st.recursive(atoms, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)


@given(numbers, numbers)
def test_numbers_are_equal_exactly_when_hashes_are(a, b):
    assert (key_hash(a) == key_hash(b)) == (a == b)


@given(nested, nested)
def test_keys_are_equal_exactly_when_hashes_are(a, b):
    assert (key_hash(a) == key_hash(b)) == (a == b)


@dataclass(frozen=True, eq=False)
class Identity:
    x: int


@dataclass
class Mutable:
    x: int


class Plain(msgspec.Struct):
    x: int


@pytest.mark.parametrize(
    "key",
    [object(), Identity(1), Mutable(1), Plain(1), [1], {"a": 1}, {1}, 1j, (1, [2])],
    ids=lambda key: type(key).__name__,
)
def test_other_types_are_refused_by_name(key):
    with pytest.raises(ExchangeError, match=r"a key of type .*\n.*frozen dataclass") as caught:
        key_hash(key)
    culprit = key[1] if isinstance(key, tuple) else key
    assert type(culprit).__qualname__ in str(caught.value)


def test_groups_are_spread_evenly():
    count = Counter(key_group(f"user-{i}") for i in range(25_600))
    assert len(count) == KEY_GROUPS
    assert max(count.values()) < 160
    assert min(count.values()) > 50


@pytest.mark.parametrize("executors", [1, 2, 3, 7, 100, 255, 256])
def test_owners_are_contiguous_and_even(executors):
    owners = [owner(group, executors) for group in range(KEY_GROUPS)]
    assert owners == sorted(owners)
    sizes = Counter(owners)
    assert set(sizes) == set(range(executors))
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert all([g for g in range(KEY_GROUPS) if owners[g] == i] == list(owned_groups(i, executors)) for i in sizes)


@pytest.mark.parametrize("executors", [0, -1, 257])
def test_impossible_numbers_of_executors(executors):
    with pytest.raises(ExchangeError, match=f"{executors} executors cannot share 256"):
        even_routing(executors)


@pytest.mark.parametrize("executors", [1, 2, 3, 6, 7, 40, 256])
@pytest.mark.parametrize("with_times", [True, False])
@pytest.mark.parametrize("values_are", ["keys", "none", "own"])
def test_split_keeps_order_and_routes_by_group(executors, with_times, values_are):
    keys = [(f"k{i % 37}", i % 5) if i % 3 else i % 11 for i in range(500)]
    values = {"keys": keys, "none": None, "own": [("v", i) for i in range(500)]}[values_are]
    times = list(range(500)) if with_times else None
    router = Router(executors)
    for _ in range(2):  # with an empty and with a full memo
        parts = router.split(keys, values, times)
        assert [part[0] for part in parts] == sorted({owner(key_group(k), executors) for k in keys})
        for executor, own_keys, own_values, own_times in parts:
            places = [i for i, key in enumerate(keys) if owner(key_group(key), executors) == executor]
            assert own_keys == [keys[i] for i in places]
            assert (own_values is own_keys) == (values is keys)
            assert own_values == (None if values is None else [values[i] for i in places])
            assert own_times == (None if times is None else [times[i] for i in places])


def test_one_destination_gets_the_lists_themselves():
    keys, times = ["a"] * 5, [1, 2, 3, 4, 5]
    for router in (Router(1), Router(3), Router(50)):
        ((executor, own, values, own_times),) = router.split(keys, keys, times)
        assert executor == owner(key_group("a"), router.executors)
        assert own is keys
        assert values is keys
        assert own_times is times


def test_an_empty_batch_has_no_parts():
    assert Router(1).split([], [], None) == Router(4).split([], None, []) == []


def test_a_routing_table_after_a_split():
    table = tuple(2 if group == key_group("hot") else owner(group, 2) for group in range(KEY_GROUPS))
    router = Router(3, table)
    assert router.executor("hot") == 2
    assert {e for e, *_ in router.split([f"k{i}" for i in range(1000)] + ["hot"], None, None)} == {0, 1, 2}


@pytest.mark.parametrize("table", [(0,) * 255, (0,) * 255 + (3,), (-1,) * 256])
def test_a_routing_table_is_checked(table):
    with pytest.raises(ExchangeError, match="routing table"):
        Router(3, table)


def test_the_memo_is_bounded(monkeypatch):
    monkeypatch.setattr(keys_module, "MEMO_KEYS", 100)
    router = Router(4)
    for start in range(0, 1000, 50):
        keys = [f"k{i}" for i in range(start, start + 50)]
        for executor, own, _, _ in router.split(keys, None, None):
            assert {owner(key_group(key), 4) for key in own} == {executor}
        assert len(router._memo) <= 100


def test_unhashable_keys_are_named():
    with pytest.raises(ExchangeError, match=r"type list cannot be used .*\[1, 2\]"):
        Router(2).split(["a", [1, 2]], None, None)
    with pytest.raises(ExchangeError, match=r"type builtins\.complex"):
        Router(2).split(["a", 1j], None, None)
