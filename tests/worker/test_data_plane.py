"""What the data plane promises in odd moments, over real worker processes."""

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from penstock.cluster.local_run import Progress, RunRequest, RunResult, run
from penstock.errors import PenstockError
from penstock.settings import RunSettings

HEADER = """
import time
import penstock as ps
from penstock.flow.connector import EndOfInput, Reader, Sink, Source, Writer
"""


def write(tmp_path: Path, body: str, name: str = "the_flow") -> str:
    path = tmp_path / f"{name}.py"
    path.write_text(HEADER + textwrap.dedent(body))
    return str(path)


def go(target: str, stop_when: Any = None, seconds: float = 60, **options: Any) -> RunResult:
    async def main() -> RunResult:
        stop = asyncio.Event()

        def watch(progress: Progress) -> None:
            if stop_when is not None and stop_when(progress):
                stop.set()

        return await asyncio.wait_for(run(RunRequest(target=target, **options), watch, stop), seconds)

    return asyncio.run(main())


def test_a_silent_push_source_does_not_hold_event_time_back(tmp_path: Path) -> None:
    target = write(
        tmp_path,
        """
        flow = ps.Flow("silent")
        times = flow.source("clock", ps.sequence(rate=2000)).stamp("t", on=lambda n: n * 10)
        pushed = flow.source("pushed", ps.push()).stamp("p", on=lambda n: n * 10)
        counts = times.merge("both", pushed).key_by("k", lambda n: n % 2).window(ps.tumbling("1s"))
        counts.aggregate("counted", n=ps.count()).sink("out", ps.collect())
        """,
    )
    fired: list[int] = []
    result = go(
        target,
        lambda progress: (
            fired.append(1)
            or sum(e.records_out for e in progress.executors if e.executor.stage) > 4
            or progress.elapsed > 20
        ),
        settings=RunSettings(idle_lane=0.3),
    )
    assert result.elapsed < 15, "no window closed while the run was on"


def test_dead_letters_of_all_stages_are_kept(tmp_path: Path) -> None:
    target = write(
        tmp_path,
        f"""
        def first(n):
            return n if n % 10 else 1 // 0

        def second(record):
            return record if record.key != 3 else 1 // 0

        flow = ps.Flow("letters", on_error=ps.ndjson({str(tmp_path / "letters")!r}))
        numbers = flow.source("n", ps.sequence(100)).map("first", first)
        numbers.key_by("k", lambda n: n % 7).count("c").map("second", second).sink("out", ps.collect())
        """,
    )
    for name, options in (("plain", {}), ("kept", {"checkpoint_url": str(tmp_path / "c")})):
        result = go(target, workers=2, executors=2, **options)
        found = [
            json.loads(line)["step"]
            for part in (tmp_path / "letters").glob("part-*")
            for line in part.read_text().splitlines()
        ]
        refused = result.counters["second.dead_letter"]
        assert Counter(found) == {"first": 10, "second": refused}, name
        assert refused > 0


ACCEPTED = """
    class Taken(Reader):
        # As a push source: records that were accepted and that nobody will send again.
        def __init__(self):
            self.waiting = list(range(5000))

        def read(self, limit):
            time.sleep(0.02)
            taken, self.waiting = self.waiting[:3], self.waiting[3:]
            return taken

        def offset(self):
            return 5000 - len(self.waiting)

        def lag(self):
            return len(self.waiting)

    class Accepted(Source):
        bounded = False
        replayable = False

        def partitions(self):
            return ["one"]

        def open(self, partition, offset, ctx):
            reader = Taken()
            reader.waiting = reader.waiting[:100] if offset is None else []
            return reader

    flow = ps.Flow("accepted")
    flow.source("taken", Accepted()).key_by("k", lambda n: n).count("c").sink("out", ps.collect())
"""


@pytest.mark.parametrize("checkpointed", [False, True])
def test_what_was_accepted_is_processed_before_a_drained_run_ends(tmp_path: Path, checkpointed: bool) -> None:
    target = write(tmp_path, ACCEPTED)
    options: dict[str, Any] = {"checkpoint_url": str(tmp_path / "c")} if checkpointed else {}
    result = go(target, lambda progress: progress.records > 0, workers=2, **options)
    assert result.drained
    assert sorted(record["key"] for record in result.collected["out"]) == list(range(100))


def test_a_source_that_only_wakes_is_read_although_another_keeps_the_worker_busy(tmp_path: Path) -> None:
    target = write(
        tmp_path,
        """
        import threading

        class Woken(Reader):
            def __init__(self, ctx):
                self.ready = False
                self.given = False
                self.ctx = ctx
                self.timer = threading.Timer(0.5, self.ring)
                self.timer.start()

            def ring(self):
                self.ready = True
                self.ctx.wake()

            def read(self, limit):
                if self.given:
                    raise EndOfInput
                if not self.ready:
                    return []
                self.given = True
                return [-1]

            def offset(self):
                return None

            def close(self):
                self.timer.cancel()

        class Bell(Source):
            def partitions(self):
                return ["one"]

            def open(self, partition, offset, ctx):
                return Woken(ctx)

        flow = ps.Flow("busy")
        busy = flow.source("busy", ps.sequence()).map("work", lambda n: sum(range(20)) and n)
        busy = busy.filter("f", lambda n: False)
        busy.merge("both", flow.source("bell", Bell())).sink("out", ps.collect())
        """,
    )
    result = go(target, lambda progress: progress.elapsed > 4)
    assert result.collected.get("out") == [-1]


def test_what_cannot_travel_is_told_with_the_steps_and_the_type(tmp_path: Path) -> None:
    body = """
        class Thing:
            def __hash__(self):
                return 1

            def __eq__(self, other):
                return True

        flow = ps.Flow("types")
        numbers = flow.source("n", ps.sequence(10))
        {}
    """
    steps = 'numbers.map("wrap", lambda n: Thing()).key_by("k", lambda t: 1).fold("f", 0, lambda s, t: (s, s))'
    target = write(tmp_path, body.format(steps + '.sink("o", ps.null())'), "values")
    with pytest.raises(PenstockError, match=r"step 'k': its results cannot go on to 'f'(?s:.*)Thing"):
        go(target, workers=2)
    steps = 'numbers.key_by("k", lambda n: Thing()).count("c").sink("o", ps.null())'
    with pytest.raises(PenstockError, match=r"step 'k': its results cannot go on to 'c'(?s:.*)Thing"):
        go(write(tmp_path, body.format(steps), "keys"), workers=2, executors=2)
    steps = 'numbers.key_by("k", lambda n: [n]).count("c").sink("o", ps.null())'
    with pytest.raises(PenstockError, match=r"step 'k': TypeError: unhashable type: 'list'"):
        go(write(tmp_path, body.format(steps), "lists"), workers=2, executors=2)
    steps = 'numbers.key_by("k", lambda n: n).fold("f", 0, lambda s, n: (Thing(), n)).sink("o", ps.null())'
    with pytest.raises(PenstockError, match=r"step 'f': its state cannot be stored(?s:.*)Thing"):
        go(write(tmp_path, body.format(steps), "states"), checkpoint_url=str(tmp_path / "c"))
    steps = 'numbers.map("s", lambda n: chr(0xd800)).key_by("k", lambda s: 1).fold("f", 0, lambda s, t: (s, s))'
    steps += '.sink("o", ps.null())'
    with pytest.raises(PenstockError, match=r"step 'k': its results cannot go on to 'f'"):
        go(write(tmp_path, body.format(steps), "surrogates"), workers=2)


@pytest.mark.parametrize("method", ["write", "flush", "prepare", "commit", "close"])
def test_what_a_writer_raises_ends_the_run_with_the_steps_name(tmp_path: Path, method: str) -> None:
    target = write(
        tmp_path,
        f"""
        class Broken(Writer):
            def write(self, records):
                pass

            def {method}(self, *arguments):
                raise ValueError("the printer is on fire")

        class Printer(Sink):
            def open(self, ctx):
                return Broken()

        flow = ps.Flow("broken")
        flow.source("n", ps.sequence(10)).sink("printer", Printer())
        """,
    )
    with pytest.raises(PenstockError, match="step 'printer': ValueError: the printer is on fire"):
        go(target, checkpoint_url=str(tmp_path / "c"))


def test_what_a_reader_raises_ends_the_run_with_the_sources_name(tmp_path: Path) -> None:
    target = write(
        tmp_path,
        """
        class Broken(Reader):
            def read(self, limit):
                raise ValueError("no paper")

            def offset(self):
                return None

        class Scanner(Source):
            def partitions(self):
                return ["one"]

            def open(self, partition, offset, ctx):
                return Broken()

        flow = ps.Flow("broken")
        flow.source("scanner", Scanner()).sink("out", ps.null())
        """,
    )
    with pytest.raises(PenstockError, match="step 'scanner': ValueError: no paper"):
        go(target)


@pytest.mark.parametrize("where", ["import", "step"])
def test_an_author_who_exits_is_told_so(tmp_path: Path, where: str) -> None:
    body = """
        import sys

        {}
        flow = ps.Flow("leaving")
        flow.source("n", ps.sequence(10)).map("leave", lambda n: sys.exit(7)).sink("out", ps.null())
    """
    with pytest.raises(PenstockError, match="SystemExit: 7"):
        go(write(tmp_path, body.format("sys.exit(7)" if where == "import" else "")))


UNEVEN = """
    ps.config.defaults(folder="")
    folder = ps.config["folder"]
    flow = ps.Flow("uneven")
    slow = lambda line: time.sleep(0.002) or line
    words = flow.source("words", ps.files(folder + "/a-*.txt"))
    others = flow.source("others", ps.files(folder + "/b-*.txt")).map("slow", slow)
    counted = words.key_by("k", lambda w: w).count("counted", emit="final")
    counted.map("text", lambda r: f"{r.key} {r.value}").merge("all", others).sink("out", ps.ndjson(folder + "/out/"))
"""


def test_an_executor_that_had_finished_sends_its_last_results_once(tmp_path: Path) -> None:
    """Executor 0 of the second stage has finished at the checkpoint, executor 1 still reads the long file."""
    for number in range(2):
        (tmp_path / f"a-{number}.txt").write_text("".join(f"w{n}\n" for n in range(40)))
    (tmp_path / "b-0.txt").write_text("short\n")
    (tmp_path / "b-1.txt").write_text("".join(f"line{n}\n" for n in range(1500)))
    target = write(tmp_path, UNEVEN)
    options: dict[str, Any] = {
        "config": {"folder": str(tmp_path)},
        "checkpoint_url": str(tmp_path / "c"),
        "settings": RunSettings(checkpoint_interval=0.1, batch_records=8),
        "executors": 2,
        "workers": 2,
    }
    result = go(target, lambda progress: progress.elapsed > 1, **options)
    assert result.drained
    go(target, **options)
    lines = [line for part in (tmp_path / "out").glob("part-*") for line in part.read_text().splitlines()]
    texts = Counter(map(json.loads, lines))
    assert texts == Counter(["short", *(f"line{n}" for n in range(1500)), *(f"w{n} 2" for n in range(40))])


def test_what_was_added_to_a_finished_input_comes_out(tmp_path: Path) -> None:
    body = """
        ps.config.defaults(folder="")
        flow = ps.Flow("grown")
        words = flow.source("words", ps.files(ps.config["folder"] + "/in-*.txt"))
        words.key_by("k", lambda w: w).count("counted", emit="final").sink("out", ps.collect())
    """
    (tmp_path / "in-1.txt").write_text("a\nb\n")
    target = write(tmp_path, body)
    options: dict[str, Any] = {"config": {"folder": str(tmp_path)}, "checkpoint_url": str(tmp_path / "c")}
    go(target, **options)
    go(target, **options)
    (tmp_path / "in-2.txt").write_text("a\n")
    last = {record["key"]: record["value"] for record in go(target, **options).collected["out"]}
    assert last["a"] == 2


def test_an_idle_run_uses_hardly_any_processor_time(tmp_path: Path) -> None:
    target = write(
        tmp_path,
        """
        async def look(n):
            return n

        flow = ps.Flow("idle")
        slow = flow.source("slow", ps.sequence(rate=0.2))
        flow.source("pushed", ps.push()).merge("both", slow).enrich("e", look).sink("out", ps.null())
        """,
    )
    result = go(target, lambda progress: progress.elapsed > 4)
    assert sum(e.cpu for report in result.metrics for e in report.executors) < 0.2


def test_killed_runs_leave_their_sockets_to_be_removed_by_the_next(tmp_path: Path, monkeypatch: Any) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # a socket's path must be short
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stale, other = folder / f"penstock-run-{gone.pid}-abc", folder / "penstock-run-1-abc"
    for path in (stale, other):
        path.mkdir()
        (path / "x.sock").write_text("")
    target = write(tmp_path, 'flow = ps.Flow("f")\nflow.source("n", ps.sequence(1)).sink("out", ps.null())')
    go(target)
    left = [path.name for path in folder.iterdir()]
    shutil.rmtree(folder)
    assert left == [other.name]
