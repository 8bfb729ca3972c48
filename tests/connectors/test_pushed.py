from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import codec
from penstock.connectors import push
from penstock.connectors.pushed import CLIENTS, WINDOW, SeenPushes
from penstock.errors import UsageError


def reopened(source, reader, ctx):
    """A reader restored from a checkpoint that went to disk and back."""
    return source.open("push", codec.loads(codec.dumps(reader.offset())), ctx)


def test_records_in_order_and_a_bell(ctx):
    rung = []
    ctx.wake = lambda: rung.append(1)
    source = push()
    assert source.accepts_push
    reader = source.open("push", None, ctx)
    assert reader.push([1, 2, 3], None, None)
    assert reader.push(["x"], None, None)
    assert rung == [1, 1]
    assert reader.lag() == 4
    assert reader.read(2) == [1, 2]
    assert reader.read(9) == [3, "x"]
    assert reader.read(9) == []


def test_the_queue_is_bounded_in_bytes(ctx):
    reader = push(max_bytes=10_000).open("push", None, ctx)
    taken = 0
    while reader.push(["x" * 100], None, None):
        taken += 1
    assert 50 < taken < 100
    reader.read(1)
    assert reader.push(["x" * 100], None, None)
    with pytest.raises(UsageError, match="more than the source's bound"):
        reader.push(["x" * 10_001], None, None)


def test_a_refused_push_can_be_repeated(ctx):
    reader = push(max_bytes=200).open("push", None, ctx)
    assert reader.push(["x" * 100], "c", 1)
    assert not reader.push(["y" * 100], "c", 2)
    assert reader.read(9) == ["x" * 100]
    assert reader.push(["y" * 100], "c", 2)
    assert reader.read(9) == ["y" * 100]


def test_repeats_are_taken_once_also_when_they_overtake(ctx):
    reader = push().open("push", None, ctx)
    for seq in (5, 7, 6, 5, 6, 7, 8):
        assert reader.push([seq], "c", seq)
    assert reader.push([0], "other", 5)
    assert reader.read(99) == [5, 7, 6, 8, 0]


def test_a_checkpoint_covers_what_was_read_and_nothing_else(ctx):
    source = push()
    reader = source.open("push", None, ctx)
    reader.push([10, 11, 12], "c", 1)
    reader.push([20, 21], "c", 2)
    assert reader.read(2) == [10, 11]
    restored = reopened(source, reader, ctx)
    for seq, records in ((1, [10, 11, 12]), (2, [20, 21])):  # the client got no answer and repeats
        assert restored.push(records, "c", seq)
    assert restored.read(1) == [12]
    again = reopened(source, restored, ctx)
    assert again.push([10, 11, 12], "c", 1)
    assert again.push([20, 21], "c", 2)
    assert again.read(9) == [20, 21]
    assert reopened(source, again, ctx).push([20, 21], "c", 2)
    assert again.read(9) == []


def test_one_lane_for_every_executor():
    source = push()
    assert list(source.partitions()) == ["push"]
    assert list(source.shares(3)) == ["push", "push-1", "push-2"]


def test_lanes_know_only_of_their_own_pushes(ctx):
    source = push()
    one, two = (source.open(name, None, ctx) for name in source.shares(2))
    assert one.push([1], "c", 1)
    assert two.push([2], "c", 1)
    assert (one.read(9), two.read(9)) == ([1], [2])


@pytest.mark.parametrize("executors", [1, 2, 3, 4])
def test_after_a_change_of_their_number_every_executor_knows_all_repeats(ctx, executors):
    source = push()
    offsets = {}
    for number, name in enumerate(source.shares(3)):
        reader = source.open(name, None, ctx)
        for seq in (7, 9, 8):
            reader.push([seq], f"client-{number}", seq)
        reader.push(["read", "waits"], f"client-{number}", 10)
        assert reader.read(4) == [7, 9, 8, "read"]
        offsets[name] = codec.loads(codec.dumps(reader.offset()))
    everybody = {}
    for place, name in enumerate(source.shares(executors)):
        offset = source.restored(name, offsets, executors)
        reader = source.open(name, codec.loads(codec.dumps(offset)), ctx)
        for number in range(3):
            for seq, records in ((7, [7]), (8, [8]), (9, [9]), (10, ["read", "waits"]), (11, [11])):
                assert reader.push(records, f"client-{number}", seq)
            everybody[place, number] = reader.read(99)
    for (place, number), found in everybody.items():
        if executors != 3 or place == number:
            assert found == ["waits", 11]
        else:
            assert found == [7, 8, 9, "read", "waits", 11]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 200)), max_size=200))
def test_the_window_never_takes_twice_and_loses_only_the_very_late(pushes):
    seen = SeenPushes()
    taken: dict[str, set[int]] = {"a": set(), "b": set()}
    for client, seq in pushes:
        repeat = (client, seq) in seen
        if seq in taken[client]:
            assert repeat
        elif repeat:
            assert seq <= max(taken[client]) - WINDOW
        seen.add(client, seq)
        taken[client].add(seq)
    seen = SeenPushes(codec.loads(codec.dumps(seen.plain())))
    assert all((client, seq) in seen for client, seqs in taken.items() for seq in seqs)


def test_memory_is_bounded_by_the_number_of_clients():
    seen = SeenPushes()
    for n in range(CLIENTS + 10):
        seen.add(f"client-{n}", 1)
    assert len(seen.plain()) == CLIENTS
    assert ("client-5", 1) not in seen
    assert (f"client-{CLIENTS}", 1) in seen
    assert len(msgspec.msgpack.encode(seen.plain())) < 200_000
