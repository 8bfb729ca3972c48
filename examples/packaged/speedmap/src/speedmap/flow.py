"""How fast vehicles move, per cell of a map grid and hour.

penstock run examples/packaged/speedmap --set input=examples/data/taxi
penstock model add examples/packaged/speedmap
"""

from typing import Any

import penstock as ps
from speedmap.grid import cell

DEGREES, INPUT = ps.config["degrees"], ps.config["input"]


def cell_of(fix: dict[str, Any]) -> str:
    """Where a vehicle is."""
    return cell(fix["lat"], fix["lon"], DEGREES)


flow = ps.Flow("speedmap")
(
    flow.source(
        "fixes", ps.push() if INPUT == "push" else ps.csv(INPUT, types={"lat": float, "lon": float, "speed": float})
    )
    .filter("located", lambda fix: fix["lat"] != 0.0)
    .key_by("cell", cell_of)
    .window(ps.tumbling(ps.config["window"]), on="time")
    .aggregate("speed", fixes=ps.count(), mean=ps.mean("speed"), fastest=ps.max("speed"))
    .sink("out", ps.stdout())
)


def self_test() -> None:
    """What a node checks before it accepts the model: three fixes in one place, one of them not located."""
    place = {"time": "2009-01-06T05:15:07", "lat": 40.0423, "lon": 116.61}
    fixes = [place | {"speed": 10.0}, place | {"speed": 30.0}, place | {"speed": 99.0, "lat": 0.0}]
    run = ps.testing.run(flow, {"fixes": fixes})
    (result,) = run.outputs["out"]
    assert (result["fixes"], result["mean"], result["fastest"]) == (2, 20.0, 30.0)
    assert result["key"] == cell_of(fixes[0])
