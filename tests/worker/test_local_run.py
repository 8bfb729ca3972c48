"""Whole flows over real worker processes."""

import asyncio
import json
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from penstock.cluster.local_run import Progress, RunRequest, RunResult, run
from penstock.errors import CheckpointError, PenstockError, UsageError, WorkerError
from penstock.settings import RunSettings


def write(tmp_path: Path, body: str, name: str = "the_flow") -> str:
    path = tmp_path / f"{name}.py"
    path.write_text("import os\nimport signal\nimport penstock as ps\n" + textwrap.dedent(body))
    return str(path)


def go(target: str, stop_when: Any = None, **options: Any) -> RunResult:
    async def main() -> RunResult:
        stop = asyncio.Event()

        def watch(progress: Progress) -> None:
            if stop_when is not None and stop_when(progress):
                stop.set()

        return await asyncio.wait_for(run(RunRequest(target=target, **options), watch, stop), 90)

    return asyncio.run(main())


DIAMOND = """
    ADD = lambda s, n: (s + n, n)
    flow = ps.Flow("diamond")
    numbers = flow.source("n", ps.sequence(3000))
    left = numbers.map("double", lambda n: n * 2).key_by("by-left", lambda n: n % 11).fold("a", 0, ADD)
    right = numbers.map("triple", lambda n: n * 3).key_by("by-right", lambda n: n % 7).fold("b", 0, ADD)
    both = left.map("l", lambda r: r.value // 2).merge("both", right.map("r", lambda r: r.value // 3))
    both.key_by("by-n", lambda n: n).count("seen").filter("twice", lambda r: r.value == 2).sink("out", ps.collect())
"""


@pytest.mark.parametrize(("workers", "executors"), [(1, 1), (2, 2), (3, 3)])
def test_a_diamond_with_hardly_any_credit_does_not_stand_still(tmp_path: Path, workers: int, executors: int) -> None:
    target = write(tmp_path, DIAMOND)
    settings = RunSettings(credit_bytes=1, batch_records=16)
    result = go(target, workers=workers, executors=executors, settings=settings)
    assert Counter(record["key"] for record in result.collected["out"]) == Counter(range(3000))


def test_a_diamond_with_checkpoints(tmp_path: Path) -> None:
    target = write(tmp_path, DIAMOND)
    settings = RunSettings(credit_bytes=100, batch_records=16, checkpoint_interval=0.02)
    url = str(tmp_path / "checkpoints")
    result = go(target, workers=2, executors=2, settings=settings, checkpoint_url=url)
    assert sorted(record["key"] for record in result.collected["out"]) == list(range(3000))
    assert result.checkpoint is not None
    assert result.checkpoint >= 1


COUNTER = """
    ps.config.defaults(folder="")
    flow = ps.Flow("counter")
    (
        flow.source("lines", ps.files(ps.config["folder"] + "/in-*.txt"))
        .map("work", lambda line: sum(range(3000)) and line)
        .key_by("word", lambda line: line)
        .count("count")
        .sink("out", ps.ndjson(ps.config["folder"] + "/out/"))
    )
"""


def results(folder: Path) -> Counter[tuple[str, int]]:
    lines = [line for part in (folder / "out").glob("part-*") for line in part.read_text().splitlines()]
    return Counter((record["key"], record["value"]) for record in map(json.loads, lines))


def test_a_finished_run_started_again_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "in-1.txt").write_text("a\nb\na\n")
    options: dict[str, Any] = {"config": {"folder": str(tmp_path)}, "checkpoint_url": str(tmp_path / "c")}
    target = write(tmp_path, COUNTER)
    first = go(target, **options)
    expected = Counter([("a", 1), ("a", 2), ("b", 1)])
    assert results(tmp_path) == expected
    again = go(target, **options)
    assert again.restored == first.checkpoint
    assert results(tmp_path) == expected


def test_state_moves_to_another_number_of_executors(tmp_path: Path) -> None:
    words = [f"w{n % 50}" for n in range(20_000)]
    for number in range(4):
        (tmp_path / f"in-{number}.txt").write_text("".join(f"{word}\n" for word in words[number::4]))
    options: dict[str, Any] = {
        "config": {"folder": str(tmp_path)},
        "checkpoint_url": str(tmp_path / "c"),
        "settings": RunSettings(checkpoint_interval=0.02, batch_records=8),
    }
    target = write(tmp_path, COUNTER)
    first = go(target, lambda progress: progress.records > 100, workers=2, executors=2, **options)
    assert first.drained
    go(target, workers=2, executors=3, **options)
    assert results(tmp_path) == Counter((f"w{n}", count + 1) for n in range(50) for count in range(400))


def test_a_checkpoint_of_another_flow_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in-1.txt").write_text("a\n")
    options: dict[str, Any] = {"config": {"folder": str(tmp_path)}, "checkpoint_url": str(tmp_path / "c")}
    go(write(tmp_path, COUNTER), **options)
    with pytest.raises(CheckpointError, match="another flow"):
        go(write(tmp_path, COUNTER.replace('.count("count")', '.count("other")')), **options)


def test_the_authors_error_names_step_record_and_line(tmp_path: Path) -> None:
    target = write(
        tmp_path,
        """
        def invert(n):
            return 1 / (5 - n)

        flow = ps.Flow("bad")
        flow.source("n", ps.sequence(10)).map("invert", invert).sink("out", ps.collect())
        """,
    )
    with pytest.raises(PenstockError, match=r"step 'invert': ZeroDivisionError(?s:.*)record: 5(?s:.*)the_flow.py:6"):
        go(target)


def test_failing_records_are_skipped_and_counted_or_go_to_a_dead_letter_sink(tmp_path: Path) -> None:
    body = """
        flow = ps.Flow("bad", on_error={})
        flow.source("n", ps.sequence(10)).map("invert", lambda n: 10 // (5 - n)).sink("out", ps.collect())
    """
    result = go(write(tmp_path, body.format('"skip"'), "skipping"))
    assert len(result.collected["out"]) == 9
    assert result.counters["invert.skipped"] == 1
    letters = tmp_path / "letters.ndjson"
    result = go(write(tmp_path, body.format(f'ps.ndjson("{letters}")'), "with_letters"))
    assert len(result.collected["out"]) == 9
    letter = json.loads(letters.read_text())
    assert (letter["step"], letter["record"]) == ("invert", 5)
    assert "ZeroDivisionError" in letter["error"]


def test_a_worker_that_dies_is_reported_with_its_signal(tmp_path: Path) -> None:
    target = write(
        tmp_path,
        """
        flow = ps.Flow("dying")
        numbers = flow.source("n", ps.sequence(10))
        numbers.map("die", lambda n: os.kill(os.getpid(), signal.SIGKILL)).sink("o", ps.collect())
        """,
    )
    with pytest.raises(WorkerError, match="died with status -9"):
        go(target)


def test_an_unbounded_flow_drains_when_stopped(tmp_path: Path) -> None:
    target = write(
        tmp_path,
        """
        flow = ps.Flow("endless")
        (
            flow.source("n", ps.sequence(rate=2000))
            .key_by("parity", lambda n: n % 2)
            .count("count")
            .sink("out", ps.collect())
        )
        """,
    )
    result = go(target, lambda progress: progress.records > 500, workers=2)
    assert result.drained
    assert len(result.collected["out"]) == result.records > 500


def test_nonsense_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 1 worker"):
        go(write(tmp_path, COUNTER), workers=0)
    with pytest.raises(UsageError, match="there is no flow"):
        go(str(tmp_path / "nothing.py"))
    with pytest.raises(UsageError, match="SyntaxError"):
        go(write(tmp_path, "flow = = 1", "broken"))
