"""A flow whose first record would come after a quarter of an hour: what a worker with an empty state weighs."""

from __future__ import annotations

import penstock as ps

flow = ps.Flow("empty")
flow.source("numbers", ps.sequence(rate=0.001)).key_by("key", lambda n: n).count("count").sink("out", ps.null())
