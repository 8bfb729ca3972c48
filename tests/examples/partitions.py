"""An example's input cut at random into partitions, as if several machines had recorded it."""

from __future__ import annotations

import csv
import gzip
import io
import random
from collections.abc import Iterable
from pathlib import Path

from tests.examples.references import DATA, lines, taxi_fixes


def cut(records: Iterable[str], folder: Path, suffix: str, head: str = "", parts: int = 4, seed: int = 42) -> str:
    """Deal `records` (lines) out to `parts` files at random; each keeps the order. The pattern that names them."""
    chance = random.Random(seed)
    dealt: list[list[str]] = [[head] if head else [] for _ in range(parts)]
    for record in records:
        dealt[chance.randrange(parts)].append(record)
    for number, part in enumerate(dealt):
        with gzip.open(folder / f"part-{number}{suffix}.gz", "wt", compresslevel=1, encoding="utf-8") as file:
            file.writelines(line + "\n" for line in part)
    return str(folder / f"part-*{suffix}.gz")


def of_lines(name: str, folder: Path) -> str:
    """A file of lines (text or NDJSON) of `examples/data`."""
    return cut(lines(DATA / name), folder, "".join(Path(name).suffixes[:1]))


def of_taxis(folder: Path) -> str:
    """The fixes of all cars by time, as collectors of a live stream would write them."""
    fixes = taxi_fixes()
    rows = io.StringIO()
    csv.DictWriter(rows, list(fixes[0])).writerows(fixes)
    return cut(rows.getvalue().splitlines(), folder, ".csv", head=",".join(fixes[0]))
