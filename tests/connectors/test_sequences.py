from __future__ import annotations

import pytest
from tests.connectors.conftest import read_all

from penstock.connectors import iterable, sequence
from penstock.errors import ConnectorError, UsageError
from penstock.flow.connector import EndOfInput


def test_shards_share_the_numbers(ctx):
    source = sequence(10, start=100, shards=3)
    shards = [read_all(source.open(name, None, ctx), limit=2) for name in source.partitions()]
    assert shards == [[100, 103, 106, 109], [101, 104, 107], [102, 105, 108]]


def test_the_offset_continues(ctx):
    source = sequence(10)
    reader = source.open("0", None, ctx)
    assert reader.read(4) == [0, 1, 2, 3]
    assert reader.progress() == 0.4
    assert read_all(source.open("0", reader.offset(), ctx)) == [4, 5, 6, 7, 8, 9]


def test_the_rate_is_kept_by_the_clock(ctx, clock):
    source = sequence(rate=100, shards=2)
    assert not source.bounded
    readers = [source.open(name, None, ctx) for name in source.partitions()]
    assert [reader.read(1000) for reader in readers] == [[], []]
    assert readers[0].next_at() == pytest.approx(clock.monotonic() + 0.02)
    clock.advance(0.1)
    assert readers[1].read(1000) == [1, 3, 5, 7, 9]
    clock.advance(10)
    assert readers[0].lag() == 505
    assert len(readers[0].read(1000)) == 505
    resumed = source.open("1", readers[1].offset(), ctx)
    assert resumed.read(9) == []
    clock.advance(0.02)
    assert resumed.read(9) == [11]


def test_reading_at_next_at_always_gives_a_record(ctx, clock):
    reader = sequence(rate=333.3).open("0", None, ctx)
    for expected in range(500):
        clock.advance(max(0.0, reader.next_at() - clock.monotonic()) + 1e-9)
        assert reader.read(10) == [expected]


@pytest.mark.parametrize("options", [{"n": -1}, {"rate": 0}, {"shards": 0}])
def test_impossible_options(options):
    with pytest.raises(UsageError, match="expected"):
        sequence(**options)


def test_a_list_and_a_function_can_be_read_again(ctx):
    for source in (iterable(["a", "b", "c"]), iterable(lambda: iter("abc")), iterable({"a": 1, "b": 2, "c": 3})):
        reader = source.open("all", None, ctx)
        assert reader.read(2) == ["a", "b"]
        assert read_all(source.open("all", reader.offset(), ctx)) == ["c"]
        assert reader.read(2) == ["c"]
        with pytest.raises(EndOfInput):
            reader.read(2)


def test_what_cannot_be_read_again_is_refused(ctx):
    with pytest.raises(UsageError, match=r"iterable\(fn\)"):
        iterable(n for n in range(3))
    with pytest.raises(UsageError, match="not str"):
        iterable("abc")
    with pytest.raises(ConnectorError, match="not iterable"):
        iterable(lambda: 5).open("all", None, ctx)
    with pytest.raises(ConnectorError, match="the same records each time"):
        iterable(lambda: [1]).open("all", 3, ctx)
