"""What the examples must give, computed in batch: from files made with DuckDB, or by plain Python that shares no code
with the examples. Every function gives rows that compare as a multiset."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
DATA = EXAMPLES / "data"
REFERENCES = ROOT / "tests" / "data"


def lines(path: Path) -> list[str]:
    """The lines of a text file, packed or not."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        return file.read().splitlines()


def nexmark(query: str) -> list[dict]:
    """The rows of a query's reference file."""
    return [json.loads(line) for line in lines(REFERENCES / f"nexmark_{query}.ndjson.gz")]


def nexmark_q1() -> list[dict]:
    """Query 1 in plain Python, after it was compared with the digest of the rows that DuckDB gave."""
    events = map(json.loads, lines(DATA / "nexmark_events.ndjson.gz"))
    bids = [event for event in events if event["type"] == 2]
    rows = sorted((bid["auction"], bid["bidder"], 908 * bid["price"], bid["ts"]) for bid in bids)
    named = [dict(zip(("auction", "bidder", "price_x1000", "ts"), row, strict=True)) for row in rows]
    content = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in named)
    expected = json.loads((REFERENCES / "nexmark_q1.json").read_text())
    assert (len(rows), hashlib.sha256(content.encode()).hexdigest()) == (expected["rows"], expected["sha256"])
    return named


def word_count() -> list[dict]:
    """Every word of the book with its number."""
    words = Counter(word for line in lines(DATA / "book.txt") for word in line.split())
    return [{"key": word, "value": count} for word, count in words.items()]


def sessions(gap_ms: int = 30 * 60 * 1000) -> list[dict]:
    """The visits of the access log. A line is cut by hand here, where the example has a regular expression."""
    requests = defaultdict(list)
    for line in lines(DATA / "access.log.gz"):
        address, rest = line.split(" ", 1)
        stamp = rest[rest.index("[") + 1 : rest.index("]")]
        status, size = line[: line.rindex('" "')].rsplit('" ', 1)[1].split(" ", 2)[:2]
        at = datetime.strptime(stamp, "%d/%b/%Y:%H:%M:%S %z")
        requests[address].append((int(at.timestamp()) * 1000, 0 if size == "-" else int(size), int(status) >= 400))
    found = []
    for address, seen in requests.items():
        visit: list[tuple[int, int, bool]] = []
        for request in [*sorted(seen), (math.inf, 0, False)]:
            if visit and request[0] - visit[-1][0] > gap_ms:
                found.append(
                    {
                        "key": address,
                        "start": visit[0][0],
                        "end": visit[-1][0] + gap_ms,
                        "requests": len(visit),
                        "bytes": sum(size for _, size, _ in visit),
                        "failed": sum(failed for _, _, failed in visit),
                    }
                )
                visit = []
            visit.append(request)
    return found


def taxi_fixes() -> list[dict[str, str]]:
    """Every fix of every car, by time."""
    fixes = [fix for path in sorted((DATA / "taxi").glob("*.csv.gz")) for fix in csv.DictReader(lines(path))]
    return sorted(fixes, key=lambda fix: fix["time"])


def taxi_speeds(degrees: float = 0.05) -> list[dict]:
    """Cells and hours with the number of fixes and the mean speed, from sums that are rounded once."""
    cells = defaultdict(list)
    for fix in taxi_fixes():
        lat, lon = float(fix["lat"]), float(fix["lon"])
        if lat == 0.0:
            continue
        corner = ",".join(f"{math.floor(at / degrees) * degrees:.2f}" for at in (lat, lon))
        cells[corner, fix["time"][:13]].append(float(fix["speed"]))
    rows = []
    for (corner, hour), speeds in cells.items():
        start = int(datetime.fromisoformat(f"{hour}:00:00").replace(tzinfo=UTC).timestamp()) * 1000
        mean = math.fsum(speeds) / len(speeds)
        rows.append(
            {
                "key": corner,
                "start": start,
                "end": start + 3_600_000,
                "fixes": len(speeds),
                "mean": mean,
                "fastest": max(speeds),
            }
        )
    return rows
