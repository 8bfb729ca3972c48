"""Fields by key, by attribute, by function; and timers, which go by them."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest

from penstock.flow.fields import column, getter, pick
from penstock.flow.timers import Timers


@pytest.mark.parametrize("value", [{"v": 3}, OrderedDict(v=3), SimpleNamespace(v=3)])
def test_a_name_is_a_key_or_an_attribute(value):
    assert pick("v", value) == getter("v")(value) == 3


@pytest.mark.parametrize("value", [{"v": 3}, SimpleNamespace(v=3)])
def test_a_column_of_one_kind_of_record(value):
    assert column("v", [value, value]) == [3, 3]


def test_a_function_takes_the_value():
    assert pick(len, "abc") == 3
    assert column(len, ["abc", ""]) == [3, 0]


@pytest.mark.parametrize(
    ("value", "says"),
    [({"a": 1, "b": 2}, "it has: a, b"), ({}, "it has: none"), (7, "of type int"), ((1, 2), "of type tuple")],
)
def test_a_missing_field_is_told_with_what_there_is(value, says):
    with pytest.raises(LookupError, match=says):
        pick("v", value)


def test_timers_go_off_in_order_once_and_also_when_set_meanwhile():
    timers = Timers()
    for key, at in (("a", 30), ("b", 10), ("a", 10), ("b", 10)):
        timers.set(key, at)
    seen = []
    for at, key in timers.until(20):
        seen.append((at, key))
        if at == 10:
            timers.set(key + "!", 15)
    assert seen == [(10, "b"), (10, "a"), (15, "b!"), (15, "a!")]
    assert list(timers.until(29)) == []
    assert list(timers.until(30)) == [(30, "a")]
