"""`penstock run --checkpoint` killed with SIGKILL at random moments ends as if nothing had happened.

Every record adds to its key's running sum and the sums are the output, so a lost, repeated or reordered record of a key
changes what is written from there on.
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.faults

HERE = Path(__file__).parent
KEYS, PER_FILE, FILES = 37, 4000, 3
KILLS = 7


def write_input(folder: Path, seed: int) -> Counter[tuple[str, int]]:
    """Input in which a key occurs in one file only (so that its order is fixed); the expected (key, sum) pairs."""
    folder.mkdir()
    rng = random.Random(seed)
    expected: Counter[tuple[str, int]] = Counter()
    for number in range(FILES):
        sums: Counter[str] = Counter()
        lines = []
        for _ in range(PER_FILE):
            key, value = f"k{number}-{rng.randrange(KEYS)}", rng.randrange(1, 1000)
            sums[key] += value
            expected[key, sums[key]] += 1
            lines.append(f"{key} {value}\n")
        (folder / f"{number}.txt").write_text("".join(lines))
    return expected


def command(tmp_path: Path, workers: int, executors: int) -> list[str]:
    return [
        sys.executable, str(HERE / "run_flow.py"), str(HERE / "kill_flow.py"), str(workers), str(executors),
        str(tmp_path / "checkpoints"), "0.05",
        f"input={tmp_path / 'in'}", f"out={tmp_path / 'out'}", f"db=sqlite:///{tmp_path / 'out.db'}",
    ]  # fmt: skip


def written(tmp_path: Path) -> tuple[Counter[tuple[str, int]], Counter[tuple[str, int]]]:
    """What the two sinks hold."""
    files: Counter[tuple[str, int]] = Counter()
    for part in (tmp_path / "out").glob("part-*"):
        for line in part.read_text().splitlines():
            record = json.loads(line)
            files[record["key"], record["value"]] += 1
    with sqlite3.connect(tmp_path / "out.db") as connection:
        rows = Counter(connection.execute("select key, value from totals").fetchall())
    connection.close()
    return files, rows


def kill_one(process: subprocess.Popen[bytes], rng: random.Random) -> None:
    """SIGKILL the run itself or one of its workers, then wait until all of it is gone."""
    family = psutil.Process(process.pid).children(recursive=True)
    victim = rng.choice([process.pid, *(child.pid for child in family)])
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait(30)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, "workers outlived their run"


def manifests(tmp_path: Path) -> set[str]:
    """The names of all complete checkpoints."""
    return {path.parent.name for path in (tmp_path / "checkpoints").glob("*/*/manifest.json")}


def wait_for_progress(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """Until this run has completed a checkpoint of its own, or has ended."""
    before = manifests(tmp_path)
    deadline = time.monotonic() + 60
    while process.poll() is None and manifests(tmp_path) <= before:
        assert time.monotonic() < deadline, "the run makes no checkpoint"
        time.sleep(0.01)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("seed", "workers", "executors"), [(1, 1, 1), (2, 2, 1), (3, 2, 2), (4, 3, 3)])
def test_results_are_exact_after_random_kills(tmp_path: Path, seed: int, workers: int, executors: int) -> None:
    rng = random.Random(seed)
    expected = write_input(tmp_path / "in", seed)
    call = command(tmp_path, workers, executors)
    kills = 0
    while True:
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        with process.stderr:
            if kills < KILLS:
                if kills == 0:
                    time.sleep(rng.uniform(0.0, 1.0))  # also while it starts
                else:
                    wait_for_progress(process, tmp_path)
                    time.sleep(rng.uniform(0.0, 0.2))
                if process.poll() is None:
                    kill_one(process, rng)
                    kills += 1
                    continue
            process.wait(120)
            assert process.returncode == 0, process.stderr.read().decode()
            break
    files, rows = written(tmp_path)
    assert files == expected
    assert rows == expected
    assert kills >= 5, "the run ended before it was killed often enough to mean anything"
