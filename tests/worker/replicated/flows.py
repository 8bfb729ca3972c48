"""Flows for tests of replicated executors, and what must come out of them."""

import json
import textwrap
from collections import defaultdict
from pathlib import Path

HEADER = """
import json
import penstock as ps
from penstock.flow.connector import Sink, Writer

class Append(Sink):
    # Shows records at once.
    def open(self, ctx):
        return AppendWriter(ctx.index)

class AppendWriter(Writer):
    def __init__(self, index):
        self.file = open({out!r} + f"-{{index}}", "a")

    def write(self, records):
        for record in records:
            self.file.write(json.dumps(record) + "\\n")
        self.file.flush()

def number(state, value):
    return state + 1, [value % 50, state + 1, value]
"""

NUMBERED = """
flow = ps.Flow("tried")
(
    flow.source("n", ps.sequence({n}, rate={rate}))
    .key_by("key", lambda n: n % 50)
    .fold("number", 0, number)
    .map("plain", lambda r: list(r.value))
    .key_by("again", lambda r: r[0])
    .fold("seen", 0, lambda state, r: (state + 1, r + [state + 1]))
    .map("values", lambda r: r.value)
    .sink("out", {sink})
)
"""
"""Each key's records are numbered by two steps, each behind a shuffle."""

APPEND = "Append()"


def write(tmp_path: Path, n: int, rate: int, sink: str = APPEND, body: str = NUMBERED, name: str = "tried") -> str:
    path = tmp_path / f"{name}.py"
    text = textwrap.dedent(HEADER + body)
    path.write_text(text.format(out=str(tmp_path / "out"), n=n, rate=rate, sink=sink))
    return str(path)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def written(tmp_path: Path) -> list[list[int]]:
    """What the sink has shown, in its order: appended, or in the parts of a directory."""
    parts = sorted((tmp_path / "out").glob("part-*")) if (tmp_path / "out").is_dir() else sorted(tmp_path.glob("out-*"))
    return [json.loads(line) for part in parts for line in lines(part)]


def check(tmp_path: Path, n: int) -> None:
    """Every key's records are numbered 1, 2, 3 … by both steps, in the order of the source, without gap or repeat."""
    by_key: dict[int, list[list[int]]] = defaultdict(list)
    for key, first, value, second in written(tmp_path):
        by_key[key].append([first, value, second])
    for key in range(50):
        values = list(range(key, n, 50))
        wanted = [[place + 1, value, place + 1] for place, value in enumerate(values)]
        assert by_key[key] == wanted, f"key {key}"
