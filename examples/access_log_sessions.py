"""Visits to a web site: the sessions in an access log, per address.

penstock run examples/access_log_sessions.py --workers 2

A web server writes a line when the answer is complete, so the lines of a real log are out of order: in this one by up
to 59 seconds, which is what `late` allows for. A visit ends when an address asks for nothing during half an hour.
"""

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import penstock as ps

ps.config.defaults(input=str(Path(__file__).parent / "data" / "access.log.gz"), gap="30m")

LINE = re.compile(r'(?P<address>\S+) \S+ \S+ \[(?P<time>[^]]+)\] ".*?" (?P<status>\d{3}) (?P<bytes>\d+|-) ')


def parse(line: str) -> dict[str, Any]:
    """One line of the combined log format of Apache's web server."""
    match = LINE.match(line)
    if match is None:
        raise ValueError("not a line of an access log")
    return {
        "address": match["address"],
        "ts": datetime.strptime(match["time"], "%d/%b/%Y:%H:%M:%S %z"),
        "bytes": 0 if match["bytes"] == "-" else int(match["bytes"]),
        "failed": int(match["status"] >= "400"),
    }


flow = ps.Flow("access-log-sessions")
(
    flow.source("lines", ps.files(ps.config["input"]))
    .map("parse", parse)
    .key_by("address", "address")
    .window(ps.session(ps.config["gap"]), on="ts", late="60s")
    .aggregate("visits", requests=ps.count(), bytes=ps.sum("bytes"), failed=ps.sum("failed"))
    .sink("out", ps.stdout())
)
