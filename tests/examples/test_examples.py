"""Every example gives what its reference says: whole, and with two executors and shuffled partitions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.examples import partitions, references
from tests.examples.references import EXAMPLES, nexmark

from penstock import testing

NEXMARK = "nexmark_events.ndjson.gz"


class Case(NamedTuple):
    """An example, its reference, and how its input is cut into partitions."""

    file: str
    reference: Callable[[], list[dict]]
    shuffle: Callable[[Path], str]
    sink: str = "out"
    files: int = 1
    """How many files the example reads by default."""


NEXMARK_SHUFFLE = partial(partitions.of_lines, NEXMARK)
CASES = [
    Case("wordcount.py", references.word_count, partial(partitions.of_lines, "book.txt"), "output"),
    Case("access_log_sessions.py", references.sessions, partial(partitions.of_lines, "access.log.gz")),
    Case("taxi_speed.py", references.taxi_speeds, partitions.of_taxis, files=53),
    Case("nexmark/q1.py", references.nexmark_q1, NEXMARK_SHUFFLE),
    *(Case(f"nexmark/{q}.py", partial(nexmark, q), NEXMARK_SHUFFLE) for q in ("q2", "q3", "q5", "q8", "q11")),
]
IN_PROCESSES = {"wordcount.py", "access_log_sessions.py", "nexmark/q5.py", "nexmark/q8.py", "nexmark/q11.py"}
each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
ALL = 10**9


@each
def test_whole(case: Case, load, same) -> None:
    run = testing.run(load(case.file), partitions=case.files, limit=ALL)
    same(run.outputs[case.sink], case.reference())


@each
def test_two_executors_and_shuffled_partitions(case: Case, load, same, tmp_path) -> None:
    graph = load(case.file, input=case.shuffle(tmp_path))
    run = testing.run(graph, executors=2, partitions=4, limit=ALL)
    same(run.outputs[case.sink], case.reference())
    assert not any(count for name, count in run.counters.items() if name.endswith(".late"))


@pytest.mark.parametrize("case", [case for case in CASES if case.file in IN_PROCESSES], ids=lambda case: case.file)
def test_two_processes_with_two_executors_and_shuffled_partitions(case: Case, penstock_run, same, tmp_path) -> None:
    pattern = case.shuffle(tmp_path)
    found = penstock_run(case.file, "--workers", "2", "--executors", "2", "--set", f"input={pattern}")
    same(found, case.reference())


def test_no_example_is_left_out() -> None:
    files = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py") if "packaged" not in path.parts}
    assert files == {case.file for case in CASES} | {"anomaly.py"}


def test_sessions_take_the_gap_that_is_set(load, same) -> None:
    run = testing.run(load("access_log_sessions.py", gap="5m"), limit=ALL)
    same(run.outputs["out"], references.sessions(gap_ms=5 * 60 * 1000))


def test_a_grid_of_another_size(load, same) -> None:
    run = testing.run(load("taxi_speed.py", degrees="0.1"), partitions=53, limit=ALL)
    same(run.outputs["out"], references.taxi_speeds(degrees=0.1))
