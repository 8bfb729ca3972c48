"""W1 on Penstock: `penstock run bench/penstock_w1.py --workers 2`; source and split in one process, count in another.

`BENCH_SINK=records` makes the sink take every record as a `Keyed` pair, as a real one does; with `null` it looks at
nothing, like `ps.null()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import penstock as ps
from bench.measure import Throughput, setting


@dataclass(frozen=True)
class Drop(ps.Sink):
    """Counts what arrives."""

    def open(self, ctx: ps.ConnectorContext) -> ps.Writer:
        return DropRecords() if setting("SINK") == "records" else DropUnseen()


class DropRecords(ps.Writer):
    """Gets every record and drops it."""

    def __init__(self) -> None:
        self.seen = Throughput()

    def write(self, records: Sequence[Any]) -> None:
        self.seen.add(len(records))

    def close(self) -> None:
        self.seen.report()


class DropUnseen(DropRecords):
    """Drops records unseen."""

    reads_records = False


flow = ps.Flow("w1")
(
    flow.source("lines", ps.files(setting("INPUT")))
    .flat_map("split", str.split)
    .key_by("word", lambda word: word)
    .count("count")
    .sink("out", Drop())
)
