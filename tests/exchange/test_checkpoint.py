"""The coordinator: who must report, what is complete, what is given up."""

from __future__ import annotations

from penstock.exchange.checkpoint import Abandoned, CheckpointCoordinator, Complete, Part


def coordinator(**more) -> CheckpointCoordinator[str]:
    return CheckpointCoordinator(["a", "b", "c"], timeout=10.0, **more)


def test_complete_when_everybody_has_reported():
    c = coordinator()
    assert c.begin(5.0) == 1
    assert c.waiting == ("a", "b", "c")
    assert c.on_part("b", 1, {"bytes": 3}) is None
    assert c.on_part("a", 1) is None
    assert c.on_part("c", 1) == Complete(1, {"a": Part(1), "b": Part(1, {"bytes": 3}), "c": Part(1)}, 5.0)
    assert c.in_flight is None


def test_never_two_under_way_and_numbers_grow():
    c = coordinator(after=41)
    assert c.begin(0.0) == 42
    assert c.begin(1.0) is None
    c.abort("test")
    assert c.begin(2.0) == 43


def test_repeated_foreign_and_late_reports_change_nothing():
    c = coordinator()
    c.begin(0.0)
    for executor, number in [("a", 1), ("a", 1), ("x", 1), ("b", 0), ("b", 2)]:
        assert c.on_part(executor, number) is None
    assert c.waiting == ("b", "c")
    assert c.late == 2
    c.abort("test")
    assert c.on_part("b", 1) is None
    c.begin(0.0)
    assert c.on_part("b", 1) is None
    assert c.waiting == ("a", "b", "c")


def test_too_slow_is_given_up():
    c = coordinator()
    c.begin(100.0)
    c.on_part("b", 1)
    assert c.on_time(109.9) is None
    assert c.on_time(110.0) == Abandoned(1, "not complete after 10 s", ("a", "c"))
    assert c.on_time(200.0) is None
    assert c.abort("again") is None


def test_parts_of_a_complete_checkpoint_do_not_change_later():
    c = coordinator()
    c.begin(0.0)
    c.on_part("a", 1)
    c.on_part("b", 1)
    complete = c.on_part("c", 1)
    assert complete is not None
    before = dict(complete.parts)
    c.begin(1.0)
    c.on_part("a", 2, "later")
    assert complete.parts == before
