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
KEYS, PER_FILE, FILES = 37, 3000, 3


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


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("seed", "workers", "executors"), [(1, 1, 1), (2, 2, 1), (3, 2, 2), (4, 3, 3)])
def test_results_are_exact_after_random_kills(tmp_path: Path, seed: int, workers: int, executors: int) -> None:
    rng = random.Random(seed)
    expected = write_input(tmp_path / "in", seed)
    call = command(tmp_path, workers, executors)
    kills = 0
    reached: set[str] = set()
    while True:
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        deadline = time.monotonic() + (rng.uniform(0.3, 2.5) if kills < 6 else 120)
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            kill_one(process, rng)
            kills += 1
            reached |= {path.parent.name for path in (tmp_path / "checkpoints").glob("*/*/manifest.json")}
            process.stderr.close()
            continue
        errors = process.stderr.read().decode()
        process.stderr.close()
        assert process.returncode == 0, errors
        break
    files, rows = written(tmp_path)
    assert files == expected
    assert rows == expected
    assert kills >= 5, "the run ended before it was killed often enough to mean anything"
    assert len(reached) >= 3, "too few kills came after a checkpoint"
