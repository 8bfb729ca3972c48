"""The coordinator: who must report, what is complete, what is given up."""

from __future__ import annotations

import pytest

from penstock.errors import CheckpointError
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


def test_final_state_is_the_part_of_an_executor_that_ends_before_its_barrier():
    c = coordinator()
    c.begin(0.0)
    c.on_part("a", 1)
    c.on_part("b", 1)
    complete = c.on_finished("c", 0, "last words")
    assert complete is not None
    assert complete.parts["c"] == Part(0, "last words", final=True)


def test_a_part_taken_at_the_barrier_is_not_replaced_by_the_final_state():
    c = coordinator()
    c.begin(0.0)
    c.on_part("c", 1, "at the barrier")
    assert c.on_finished("c", 1, "last words") is None
    c.on_part("a", 1)
    complete = c.on_part("b", 1)
    assert complete is not None
    assert complete.parts["c"] == Part(1, "at the barrier")
    c.begin(1.0)
    assert c.waiting == ("a", "b")
    c.on_part("a", 2)
    complete = c.on_part("b", 2)
    assert complete is not None
    assert complete.parts["c"] == Part(1, "last words", final=True)


def test_the_last_checkpoint_needs_nobody():
    c = coordinator()
    assert c.final(0.0) is None
    c.begin(0.0)
    for name in "abc":
        assert c.final(1.0) is None
        complete = c.on_finished(name, 1, name)
    assert complete is not None
    assert complete.number == 1
    assert c.begin(2.0) is None, "nobody is left to report"
    final = c.final(2.0)
    assert final is not None
    assert (final.number, set(final.parts)) == (2, {"a", "b", "c"})
    assert all(part.final for part in final.parts.values())


def test_a_restored_run_knows_who_had_finished():
    done = Part(7, "done", final=True)
    c = coordinator(after=9, finished={"b": done})
    assert c.running == ("a", "c")
    assert c.begin(0.0) == 10
    c.on_part("a", 10)
    complete = c.on_part("c", 10)
    assert complete is not None
    assert complete.parts["b"] == done
    assert c.on_finished("b", 10) is None, "it says so again when it has been restored"
    assert c.finished["b"] == done


def test_a_foreign_executor_cannot_finish():
    with pytest.raises(CheckpointError, match="x finished, but is no executor"):
        coordinator().on_finished("x", 1)


def test_parts_of_a_complete_checkpoint_do_not_change_later():
    c = coordinator()
    c.begin(0.0)
    c.on_part("a", 1)
    c.on_part("b", 1)
    complete = c.on_part("c", 1)
    assert complete is not None
    before = dict(complete.parts)
    c.begin(1.0)
    c.on_finished("a", 2, "end")
    assert complete.parts == before
