"""Makes the Nexmark reference results in this folder, in batch, with DuckDB.

Not part of the test run: DuckDB is no dependency. To make them again:

    python -m venv /tmp/references && /tmp/references/bin/pip install duckdb
    /tmp/references/bin/python tests/data/make_references.py

Each query of `nexmark_reference.sql` becomes `nexmark_<query>.ndjson.gz`, one JSON object per row, rows sorted, so that
the same input always gives the same bytes. Prices are exact integers (thousandths) and times epoch milliseconds. Of q1,
which has a row for every bid, only the number of rows and the SHA-256 of the lines are kept.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import duckdb

HERE = Path(__file__).resolve().parent
EVENTS = HERE.parent.parent / "examples" / "data" / "nexmark_events.ndjson.gz"
ROWS = {"q1": 92_000, "q2": 384, "q3": 700, "q5": 55, "q8": 296, "q11": 2_861}
DIGEST_ONLY = {"q1"}
COLUMNS = {
    "seq": "BIGINT",
    "type": "INTEGER",
    "id": "BIGINT",
    "name": "VARCHAR",
    "email": "VARCHAR",
    "city": "VARCHAR",
    "state": "VARCHAR",
    "item": "VARCHAR",
    "initialBid": "BIGINT",
    "reserve": "BIGINT",
    "ts": "BIGINT",
    "expires": "BIGINT",
    "seller": "BIGINT",
    "category": "INTEGER",
    "auction": "BIGINT",
    "bidder": "BIGINT",
    "price": "BIGINT",
}


def write(query: str, names: list[str], rows: list[tuple[object, ...]]) -> None:
    """Write one reference file; the same rows always give the same bytes."""
    lines = [json.dumps(dict(zip(names, row, strict=True)), separators=(",", ":")) for row in sorted(rows)]
    content = "".join(line + "\n" for line in lines).encode()
    if query in DIGEST_ONLY:
        path = HERE / f"nexmark_{query}.json"
        digest = {"rows": len(rows), "sha256": hashlib.sha256(content).hexdigest()}
        path.write_text(json.dumps(digest) + "\n")
    else:
        path = HERE / f"nexmark_{query}.ndjson.gz"
        with path.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
            packed.write(content)
    print(f"{path.name}: {len(rows)} rows, {path.stat().st_size} bytes")


def main() -> None:
    """Run every query over the events."""
    db = duckdb.connect()
    columns = ", ".join(f"'{name}': '{kind}'" for name, kind in COLUMNS.items())
    db.execute(
        "create table ev as select * from "
        f"read_json('{EVENTS}', format = 'newline_delimited', compression = 'gzip', columns = {{{columns}}})"
    )
    db.execute((HERE / "nexmark_reference.sql").read_text())
    for query, expected in ROWS.items():
        answer = db.execute(f"select * from {query}")
        names = [column[0] for column in answer.description]
        rows = answer.fetchall()
        if len(rows) != expected:
            raise SystemExit(f"{query}: {len(rows)} rows instead of {expected}")
        write(query, names, rows)


if __name__ == "__main__":
    main()
