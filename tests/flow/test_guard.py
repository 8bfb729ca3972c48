from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.flow.failure import policy
from penstock.flow.guard import apply, choose, is_identity, without
from penstock.flow.operator import StepContext


def skipping():
    return StepContext("step", on_error=policy("skip"))


@given(st.lists(st.sampled_from(["ok", "raise", "stop"])))
def test_every_record_is_called_once_and_exactly_the_failing_ones_are_left_out(records):
    calls = []

    def fn(place):
        calls.append(place)
        if records[place] == "raise":
            raise ValueError("no")
        if records[place] == "stop":
            raise StopIteration
        return place

    ctx = skipping()
    good = [i for i, record in enumerate(records) if record == "ok"]
    results, failed = apply(ctx, fn, list(range(len(records))))
    assert results == good
    assert failed == [i for i in range(len(records)) if i not in good]
    assert calls == list(range(len(records)))
    assert ctx.counters["skipped"] == len(failed)
    assert without(list(range(len(records))), failed) == good


class Odd:
    def __bool__(self):
        raise ValueError("neither true nor false")


@given(st.lists(st.sampled_from([True, False, None, 1, Odd(), ValueError("x")])))
def test_choose_is_false_where_the_function_fails(flags):
    def fn(i):
        if isinstance(flags[i], ValueError):
            raise flags[i]
        return flags[i]

    failed = []
    chosen = choose(skipping(), fn, list(range(len(flags))), failed)
    bad = [i for i, f in enumerate(flags) if isinstance(f, (Odd, ValueError))]
    assert failed == bad
    assert [bool(c) for c in chosen] == [i not in bad and bool(f) for i, f in enumerate(flags)]


def test_identity_is_recognised_and_nothing_else_is():
    y = 1
    assert is_identity(lambda word: word)
    for other in (lambda a: a[0], lambda a, b: a, lambda *a: a, lambda **k: k, lambda a: y, str, len, lambda: 1):
        assert not is_identity(other)
    assert not is_identity(lambda a, *, b=1: a)


def test_failing_policy_stops_at_the_first():
    with pytest.raises(Exception, match="ZeroDivisionError"):
        apply(StepContext("step", on_error=policy("fail")), lambda x: 1 // x, [1, 0, 2])
