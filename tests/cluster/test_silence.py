"""Who says nothing."""

from __future__ import annotations

from penstock.cluster.silence import Silence


def test_who_says_nothing_for_the_limit_is_silent_until_it_speaks():
    silence = Silence(1.0)
    assert silence.look({1, 2}, 0.0) == set()
    for tenth in range(1, 11):
        silence.heard(2, tenth / 10)
        assert silence.look({1, 2}, tenth / 10) == set()
    silence.heard(2, 1.1)
    assert silence.look({1, 2}, 1.1) == {1}
    assert silence.look({1, 2}, 1.2) == set()
    assert silence.silent == {1: 1.1}
    assert not silence.heard(2, 1.3)
    assert silence.heard(1, 1.3)
    assert silence.silent == {}


def test_after_a_sleep_of_ones_own_everybody_gets_a_new_chance():
    silence = Silence(1.0)
    silence.look({1}, 0.0)
    assert silence.look({1}, 30.0) == set()
    assert [silence.look({1}, 30.0 + quarter / 4) for quarter in range(1, 6)] == [set()] * 4 + [{1}]


def test_who_is_not_watched_is_forgotten():
    silence = Silence(1.0)
    silence.look({1}, 0.0)
    for quarter in range(1, 8):
        silence.look({1}, quarter / 4)
    assert silence.silent
    assert silence.look(set(), 2.0) == set()
    assert silence.silent == {}
    assert silence.look({1}, 2.25) == set()
