"""A keyed rolling anomaly score over live sensors: the flow of `penstock demo`.

    penstock run examples/anomaly.py                      # the recorded series, from files
    penstock run examples/anomaly.py --set input=push     # readings that arrive over HTTP

The method is the EWMA control chart (S. W. Roberts, "Control chart tests based on geometric moving averages",
Technometrics 1(3), 1959): the exponentially weighted mean of a sensor's readings is compared with its long-run mean,
in units of the standard deviation that such a mean has. Long-run mean and variance are kept by the incremental update
of D. H. D. West (Communications of the ACM 22(9), 1979), with a floor under the weight so that old readings fade.
Each sensor's state has constant size and is what a look-up of `chart` shows.

Roberts's limits (about three deviations) hold for independent readings. Real sensors drift and breathe with the hour,
so `LIMIT` is wide: set on the series in `data/nab`, where the chart raises 17 alarms, 8 of which begin in 8 of the 19
labelled windows. Longer memory, no calendar, one number per sensor: that is about as much as so simple a chart can see.
"""

from datetime import UTC, datetime
from math import sqrt
from pathlib import Path
from typing import Any

import penstock as ps

WEIGHT = 0.15
"""Roberts's weight of the newest reading."""
FADE = 0.0002
"""The least weight of a reading in the long-run mean and variance: a memory of about 5,000 readings."""
WARM_UP = 1000
"""Readings of a sensor before it is scored."""
LIMIT = 10.0
"""A score above it is an alarm."""
QUIET = 24 * 3600
"""Seconds of event time below the limit that end an alarm; until then it is still the same one."""

FRESH: dict[str, Any] = {"records": 0, "mean": 0.0, "variance": 0.0, "ewma": 0.0, "score": 0.0, "alarms": []}


def chart(state: dict[str, Any], reading: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Score one reading; emit it when it begins an alarm. `alarms` lists each alarm's first and last moment."""
    value, time = float(reading["value"]), reading["timestamp"]
    records = state["records"] + 1
    ewma = value if records == 1 else state["ewma"] + WEIGHT * (value - state["ewma"])
    deviation = sqrt(state["variance"] * WEIGHT / (2 - WEIGHT))
    score = abs(ewma - state["mean"]) / deviation if records > WARM_UP and deviation > 0 else 0.0

    alarms, begins = state["alarms"], False
    if score >= LIMIT:
        begins = not alarms or seconds(time) - seconds(alarms[-1][1]) > QUIET
        alarms = [*alarms, [time, time]] if begins else [*alarms[:-1], [alarms[-1][0], time]]

    weight, change = max(FADE, 1 / records), value - state["mean"]
    state = {
        "records": records,
        "mean": state["mean"] + weight * change,
        "variance": (1 - weight) * (state["variance"] + weight * change * change),
        "ewma": ewma,
        "time": time,
        "value": value,
        "score": round(score, 2),
        "alarms": alarms,
    }
    return state, {"time": time, "value": value, "score": state["score"]} if begins else None


def seconds(timestamp: str) -> float:
    """An ISO time without zone (UTC) as seconds since 1970."""
    return datetime.fromisoformat(timestamp).replace(tzinfo=UTC).timestamp()


ps.config.defaults(input=str(Path(__file__).parent / "data" / "nab" / "*.csv.gz"))
origin = ps.config["input"]

flow = ps.Flow("anomaly")
(
    flow.source("readings", ps.push() if origin == "push" else ps.csv(origin))
    .key_by("sensor", lambda reading: reading["sensor"])
    .fold("chart", FRESH, chart)
    .sink("alarms", ps.stdout())
)
