"""Records become pieces of bounded size, and a slow input does not hold back what it has given."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.client.feed import CHUNK_BYTES, CHUNK_RECORDS, LINGER, Feed
from penstock.errors import UsageError


class Clock:
    now = 5.0

    def __call__(self):
        return self.now


def bodies(feed, records):
    found = []
    for record in records:
        feed.add(feed.encode(record))
        while body := feed.take():
            found.append(body)
    feed.end()
    while body := feed.take():
        found.append(body)
    return found


@given(st.lists(st.one_of(st.integers(), st.text(max_size=20), st.just("x" * 400_000)), max_size=60))
def test_nothing_is_lost_and_pieces_are_bounded(records):
    found = bodies(Feed(Clock()), records)
    assert [msgspec.json.decode(line) for body in found for line in body.content.splitlines()] == records
    assert [body.records for body in found] == [body.content.count(b"\n") for body in found]
    assert all(len(body.content) <= CHUNK_BYTES + 400_003 for body in found)


def test_a_piece_holds_so_many_records():
    assert [body.records for body in bodies(Feed(Clock()), range(2 * CHUNK_RECORDS + 1))] == [
        CHUNK_RECORDS, CHUNK_RECORDS, 1,
    ]  # fmt: skip


def test_a_slow_record_waits_for_a_moment_only():
    clock = Clock()
    feed = Feed(clock)
    assert feed.due is None
    feed.add(feed.encode(1))
    assert feed.due == clock.now + LINGER
    clock.now += LINGER / 2
    feed.add(feed.encode(2))
    assert feed.take() is None
    clock.now = feed.due
    assert feed.take().content == b"1\n2\n"
    assert feed.due is None


def test_numbered_pieces_depend_on_the_records_alone():
    clock = Clock()
    feed = Feed(clock, linger=None)
    feed.add(feed.encode(1))
    clock.now += 100
    assert feed.take() is None
    assert feed.due is None
    feed.add(feed.encode(2))
    feed.end()
    assert feed.take().records == 2


def test_a_broken_input_is_not_completed():
    feed = Feed(Clock())
    feed.add(feed.encode(1))
    feed.end(broken=True)
    assert feed.take() is None
    assert (feed.ended, feed.broken) == (True, True)


def test_the_record_that_json_cannot_hold_is_named():
    feed = Feed(Clock())
    feed.encode(1)
    with pytest.raises(UsageError, match="record 2"):
        feed.encode(object())


@pytest.mark.parametrize(("content", "records"), [(b"1\n2\n", 2), (b"1\n2", 2)])
def test_whole_lines_are_one_piece(content, records):
    feed = Feed(Clock())
    feed.add_body(content)
    assert (feed.full, feed.take().records) == (True, records)
    feed.add_body(b" \n")
    assert feed.take() is None
