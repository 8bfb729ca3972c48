"""How fast taxis move, per cell of a map grid and hour.

penstock run examples/taxi_speed.py --workers 2

Every car writes its own file, in order of time; the files are a source partition each, with a watermark of its own. So
nothing is late, although one file is read after another and the cars are hours apart.
"""

from math import floor
from pathlib import Path
from typing import Any

import penstock as ps

ps.config.defaults(input=str(Path(__file__).parent / "data" / "taxi"), degrees=0.05)

DEGREES = ps.config["degrees"]


def cell(fix: dict[str, Any]) -> str:
    """The grid cell of a position, named by its south-west corner."""
    return f"{floor(fix['lat'] / DEGREES) * DEGREES:.2f},{floor(fix['lon'] / DEGREES) * DEGREES:.2f}"


flow = ps.Flow("taxi-speed")
(
    flow.source("fixes", ps.csv(ps.config["input"], types={"lat": float, "lon": float, "speed": float}))
    .filter("located", lambda fix: fix["lat"] != 0.0)
    .key_by("cell", cell)
    .window(ps.tumbling("1h"), on="time")
    .aggregate("speed", fixes=ps.count(), mean=ps.mean("speed"), fastest=ps.max("speed"))
    .sink("out", ps.stdout())
)
