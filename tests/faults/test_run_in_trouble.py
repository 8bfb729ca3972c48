"""Checkpoints that fail, directories that two runs want, workers that hang, runs that end half-way."""

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from penstock.cluster.local_run import Progress, RunRequest, RunResult, run
from penstock.errors import CheckpointError, PenstockError
from penstock.settings import RunSettings

pytestmark = pytest.mark.faults

HERE = Path(__file__).parent
HEADER = """
import json
import os
import time
from pathlib import Path
import penstock as ps
ps.config.defaults(folder="")
FOLDER = Path(ps.config["folder"])
"""


def write(tmp_path: Path, body: str) -> str:
    path = tmp_path / "the_flow.py"
    path.write_text(HEADER + textwrap.dedent(body))
    return str(path)


def go(target: str, stop_when: Callable[[Progress], bool] | None = None, **options: Any) -> RunResult:
    async def main() -> RunResult:
        stop = asyncio.Event()

        def watch(progress: Progress) -> None:
            if stop_when is not None and stop_when(progress):
                stop.set()

        return await asyncio.wait_for(run(RunRequest(target=target, **options), watch, stop), 60)

    return asyncio.run(main())


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def start(tmp_path: Path, target: str, interval: float = 0.1, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            sys.executable, str(HERE / "run_flow.py"), target, "2", "1", str(tmp_path / "c"), str(interval),
            f"folder={tmp_path}",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


ENDLESS = """
    flow = ps.Flow("endless")
    keyed = flow.source("n", ps.sequence(rate=1000)).key_by("k", lambda n: n % 3)
    keyed.count("c").sink("out", ps.ndjson(str(FOLDER / "out") + "/"))
"""


def test_a_directory_in_use_is_refused_and_free_after_the_end(tmp_path: Path) -> None:
    target = write(tmp_path, ENDLESS)
    first = start(tmp_path, target)
    try:
        wait_until(lambda: any((tmp_path / "c").glob("*/*/manifest.json")), "no checkpoint")
        with pytest.raises(CheckpointError, match="in use by another run"):
            go(target, checkpoint_url=str(tmp_path / "c"), config={"folder": str(tmp_path)})
        family = psutil.Process(first.pid).children(recursive=True)
    finally:
        first.kill()
        first.communicate()
    psutil.wait_procs(family, timeout=30)
    result = go(target, lambda progress: True, checkpoint_url=str(tmp_path / "c"), config={"folder": str(tmp_path)})
    assert result.restored


def test_a_run_started_again_waits_for_a_worker_that_is_still_busy(tmp_path: Path) -> None:
    """The killed run's worker is in the author's code and knows nothing yet; what it does later must not count."""
    target = write(
        tmp_path,
        """
        import psutil

        looked = []

        def look(pid):
            looked.append(pid)
            if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                (FOLDER / "together").write_text("two workers at once")

        def stick(line):
            flag = FOLDER / "stuck"
            if flag.exists() and not looked:
                look(int(flag.read_text()))
            if line == "line700" and not flag.exists():
                looked.append(os.getpid())
                flag.write_text(str(os.getpid()))
                time.sleep(5)
            return time.sleep(0.003) or line

        flow = ps.Flow("sticking")
        lines = flow.source("lines", ps.files(str(FOLDER / "in.txt"))).map("stick", stick)
        lines.key_by("k", lambda line: line).count("c").sink("out", ps.ndjson(str(FOLDER / "out") + "/"))
        """,
    )
    (tmp_path / "in.txt").write_text("".join(f"line{n}\n" for n in range(1000)))
    first = start(tmp_path, target, 0.05)
    wait_until((tmp_path / "stuck").exists, "the worker does not stick")
    family = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait()
    assert first.stderr is not None
    first.stderr.close()  # the worker has it too, so there would be no end to read
    again = start(tmp_path, target, 0.05)
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors.decode()
    assert not (tmp_path / "together").exists()
    lines = [line for part in (tmp_path / "out").glob("part-*") for line in part.read_text().splitlines()]
    assert Counter(lines) == Counter(f'{{"key":"line{n}","value":1}}' for n in range(1000))
    psutil.wait_procs(family, timeout=30)


def test_a_checkpoint_that_cannot_be_written_is_told_and_made_up_for(tmp_path: Path) -> None:
    """The author's code is used to put something into the place of the second and third checkpoint."""
    target = write(
        tmp_path,
        """
        def obstruct(n):
            if n == 0:
                for number in (2, 3):
                    (FOLDER / "c" / "obstructed" / f"chk-{number:08d}").write_text("in the way")
            return n

        flow = ps.Flow("obstructed")
        keyed = flow.source("n", ps.sequence(2000, rate=1000)).map("o", obstruct).key_by("k", lambda n: n)
        keyed.count("c").sink("out", ps.ndjson(str(FOLDER / "out") + "/"))
        """,
    )
    process = start(tmp_path, target)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    assert b"checkpoint 2 failed: checkpoint file" in errors
    assert b"checkpoint 3 failed: checkpoint file" in errors
    lines = [line for part in (tmp_path / "out").glob("part-*") for line in part.read_text().splitlines()]
    assert Counter(lines) == Counter(f'{{"key":{n},"value":1}}' for n in range(2000))


def test_a_full_disk_ends_the_run_after_three_checkpoints(tmp_path: Path) -> None:
    target = write(
        tmp_path,
        """
        flow = ps.Flow("growing")
        keyed = flow.source("n", ps.sequence(rate=20000)).key_by("k", lambda n: n)
        keyed.count("c").sink("out", ps.null())
        """,
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = start(tmp_path, target, preexec_fn=limit)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.count(b" failed: checkpoint file") == 2
    assert b"3 checkpoints in a row failed" in errors
    assert b"File too large" in errors
    folders = list((tmp_path / "c" / "growing").glob("chk-*"))
    assert not [path for folder in folders for path in folder.iterdir() if path.suffix == ".tmp"]


def test_checkpoints_that_never_come_to_an_end_end_the_run(tmp_path: Path) -> None:
    target = write(
        tmp_path,
        """
        flow = ps.Flow("slow")
        keyed = flow.source("n", ps.sequence()).key_by("k", lambda n: n % 3)
        keyed.map("slow", lambda r: time.sleep(0.05) or r).sink("out", ps.null())
        """,
    )
    settings = RunSettings(checkpoint_interval=0.05, checkpoint_timeout=0.2, batch_records=64)
    with pytest.raises(CheckpointError, match=r"3 checkpoints in a row failed(?s:.*)did not report"):
        go(target, workers=2, checkpoint_url=str(tmp_path / "c"), settings=settings)


def test_a_failed_run_shows_nothing_of_executors_that_had_finished(tmp_path: Path) -> None:
    database = tmp_path / "out.db"
    target = write(
        tmp_path,
        f"""
        def refuse(record):
            if record.key % 2:
                return record
            time.sleep(1.0)
            raise ValueError("no")

        flow = ps.Flow("half")
        numbers = flow.source("n", ps.sequence(200)).key_by("k", lambda n: n % 40).count("c")
        numbers.map("refuse", lambda r: refuse(r) if r.key < 2 and r.value == 5 else r).sink(
            "table", ps.sql("sqlite:///{database}", "numbers")
        )
        """,
    )
    settings = RunSettings(checkpoint_interval=1000.0)
    with pytest.raises(PenstockError, match="ValueError: no"):
        go(target, workers=4, executors=2, checkpoint_url=str(tmp_path / "c"), settings=settings)
    with sqlite3.connect(database) as connection:
        made = connection.execute("select count(*) from sqlite_master where name = 'numbers'").fetchone()[0]
        rows = connection.execute("select count(*) from numbers").fetchone()[0] if made else 0
    connection.close()
    assert rows == 0


def test_a_run_that_is_cancelled_does_not_wait_for_a_worker_that_hangs(tmp_path: Path) -> None:
    target = write(
        tmp_path,
        """
        flow = ps.Flow("hanging")
        flow.source("n", ps.sequence(1)).map("hang", lambda n: time.sleep(1000)).sink("out", ps.null())
        """,
    )

    before = set(psutil.Process().children())

    async def main() -> None:
        stop, seen = asyncio.Event(), asyncio.Event()
        running = asyncio.create_task(run(RunRequest(target=target), lambda progress: seen.set(), stop))
        await asyncio.wait_for(seen.wait(), 30)
        stop.set()  # the first Ctrl-C
        await asyncio.sleep(0.3)
        running.cancel()  # the second one
        done, _ = await asyncio.wait({running}, timeout=4)
        assert done, "it waits for the worker"
        assert running.cancelled()

    asyncio.run(main())
    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize("attempt", range(2))
def test_ctrl_c_while_workers_start_drains_the_run(tmp_path: Path, attempt: int) -> None:
    """A terminal sends the signal to every process of its foreground group, and a new worker does not ignore it yet."""
    target = write(tmp_path, ENDLESS)
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock.cli", "run", target, "--set", f"folder={tmp_path}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip

    def starting() -> bool:
        commands = []
        for child in psutil.Process(process.pid).children():
            try:
                commands.append(child.cmdline())
            except psutil.Error:
                continue
        return any("penstock.worker" in command for command in commands)

    wait_until(starting, "no worker starts")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    assert b"drained after" in errors
