"""Aligned barriers, by example and as a state machine."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.errors import ExchangeError
from penstock.exchange.barrier import Aligned, Aligner, Blocked, Ignored


def test_one_input_is_aligned_at_once():
    aligner = Aligner([4])
    assert aligner.on_barrier(4, 1) == Aligned(1)
    assert aligner.on_barrier(4, 2) == Aligned(2)
    assert not aligner.blocked(4)


def test_faster_inputs_wait_for_the_slowest():
    aligner = Aligner([1, 2, 3])
    assert aligner.on_barrier(2, 7) == Blocked(7)
    assert aligner.on_barrier(1, 7) == Blocked(7)
    assert [aligner.blocked(c) for c in (1, 2, 3)] == [True, True, False]
    assert (aligner.current, aligner.waiting) == (7, {3})
    assert aligner.on_barrier(3, 7) == Aligned(7)
    assert not any(aligner.blocked(c) for c in (1, 2, 3))
    assert (aligner.current, aligner.last, aligner.waiting) == (None, 7, frozenset())


def test_an_ended_input_holds_nothing_up():
    aligner = Aligner([1, 2, 3])
    assert aligner.on_end(3) is None
    assert aligner.on_barrier(1, 1) == Blocked(1)
    assert aligner.on_end(2) == Aligned(1)
    assert not aligner.blocked(1)
    assert aligner.on_barrier(1, 2) == Aligned(2)
    assert not aligner.finished
    assert aligner.on_end(1) is None
    assert aligner.finished


def test_a_newer_barrier_gives_the_older_one_up():
    aligner = Aligner([1, 2, 3])
    aligner.on_barrier(1, 1)
    aligner.on_barrier(2, 1)
    assert aligner.on_barrier(3, 2) == Blocked(2)
    assert [aligner.blocked(c) for c in (1, 2, 3)] == [False, False, True]
    assert aligner.superseded == 1
    assert aligner.on_barrier(1, 2) == Blocked(2)
    assert aligner.on_barrier(2, 2) == Aligned(2)


def test_old_and_repeated_barriers_mean_nothing():
    aligner = Aligner([1, 2])
    aligner.on_barrier(1, 5)
    assert aligner.on_barrier(1, 5) == Ignored(5)
    assert aligner.on_barrier(2, 4) == Ignored(4)
    assert not aligner.blocked(2)
    assert aligner.on_barrier(2, 5) == Aligned(5)
    assert aligner.on_barrier(2, 5) == Ignored(5)
    aligner.on_end(2)
    assert aligner.on_barrier(2, 6) == Ignored(6)
    assert aligner.ignored == 4


def test_a_cancelled_checkpoint_frees_its_channels():
    aligner = Aligner([1, 2])
    aligner.on_barrier(1, 5)
    aligner.cancel(4)
    assert aligner.blocked(1)
    aligner.cancel(5)
    assert not aligner.blocked(1)
    assert aligner.on_barrier(2, 5) == Ignored(5)
    assert aligner.on_barrier(2, 6) == Blocked(6)


def test_a_foreign_channel_is_refused():
    with pytest.raises(ExchangeError, match="channel 9 is no input"):
        Aligner([1]).on_barrier(9, 1)
    with pytest.raises(ExchangeError, match="channel 9 is no input"):
        Aligner([1]).on_end(9)


class Alignment(RuleBasedStateMachine):
    """Barriers of growing number, some missing on some channels, in any order that respects blocking."""

    @initialize(count=st.integers(1, 4))
    def start(self, count: int) -> None:
        self.aligner = Aligner(range(count))
        self.open = set(range(count))
        self.passed: dict[int, list[int]] = {channel: [] for channel in range(count)}
        self.aligned: list[int] = []

    def note(self, answer: Aligned | Blocked | Ignored | None) -> None:
        if isinstance(answer, Aligned):
            assert all(self.passed[channel][-1:] == [answer.checkpoint] for channel in self.open)
            assert not self.aligned or answer.checkpoint > self.aligned[-1]
            self.aligned.append(answer.checkpoint)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), skip=st.sampled_from([1, 1, 1, 2]))
    def barrier(self, data: st.DataObject, skip: int) -> None:
        free = sorted(channel for channel in self.open if not self.aligner.blocked(channel))
        assert free, "every input is blocked: nothing could ever free them"
        channel = data.draw(st.sampled_from(free))
        number = (self.passed[channel] or [0])[-1] + skip
        newest = max((n for own in self.passed.values() for n in own), default=0)
        self.passed[channel].append(number)
        answer = self.aligner.on_barrier(channel, number)
        if number < newest:
            assert isinstance(answer, Ignored) or number > self.aligner.last
        self.note(answer)

    @precondition(lambda self: len(self.open) > 1)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        free = sorted(channel for channel in self.open if not self.aligner.blocked(channel))
        channel = data.draw(st.sampled_from(free))
        self.open.discard(channel)
        self.note(self.aligner.on_end(channel))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def next_checkpoint_on_all(self, data: st.DataObject) -> None:
        """A barrier newer than all before, on every open channel, is aligned, in whatever order it comes."""
        number = 1 + max((n for own in self.passed.values() for n in own), default=0)
        for channel in data.draw(st.permutations(sorted(self.open))):
            self.passed[channel].append(number)
            self.note(self.aligner.on_barrier(channel, number))
        assert self.aligned[-1] == number
        assert not any(self.aligner.blocked(channel) for channel in self.open)

    @invariant()
    def blocked_channels_brought_the_current_barrier(self) -> None:
        for channel in self.open:
            if self.aligner.blocked(channel):
                assert self.passed[channel][-1] == self.aligner.current

    def teardown(self) -> None:
        for channel in sorted(getattr(self, "open", ())):
            self.open.discard(channel)
            self.note(self.aligner.on_end(channel))
            assert self.aligner.finished == (not self.open)


Alignment.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestAlignment = Alignment.TestCase


def test_a_new_channel_is_not_waited_for_until_it_is_settled():
    aligner = Aligner([1])
    aligner.add(2)
    assert aligner.on_barrier(1, 1) == Aligned(1)
    aligner.settle()
    assert aligner.on_barrier(1, 2) == Blocked(2)
    assert aligner.on_barrier(2, 2) == Aligned(2)


def test_the_first_barrier_of_a_new_channel_settles_it():
    aligner = Aligner([1])
    aligner.add(2)
    assert aligner.on_barrier(2, 1) == Blocked(1)
    assert aligner.on_barrier(1, 1) == Aligned(1)
    assert aligner.on_barrier(1, 2) == Blocked(2)


def test_a_channel_that_goes_holds_nothing_up():
    aligner = Aligner([1, 2])
    assert aligner.on_barrier(1, 1) == Blocked(1)
    assert aligner.remove(2) == Aligned(1)
    assert not aligner.blocked(1)
    assert aligner.on_barrier(1, 2) == Aligned(2)
