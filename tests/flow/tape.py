"""Driving operators by hand: an outlet that records what it hears, and wiring without a worker."""

from __future__ import annotations

import polars as pl

from penstock import codec
from penstock.flow.batch import END_TIME, IDLE, MIN_TIME, Keyed, Rows, as_rows
from penstock.flow.failure import Skip
from penstock.flow.operator import KeyedOperator, StepContext

# Polars opens files for its own runtime with the first query and keeps them: here, so that no test is blamed.
pl.DataFrame({"a": [1]}).group_by("a").agg(pl.len())


class Tape:
    """An outlet. `log` has ("send", batch) and ("advance", lane, watermark) in order."""

    def __init__(self):
        self.log = []

    def send(self, batch):
        assert len(batch), "an empty batch was sent"
        self.log.append(("send", batch))

    def advance(self, lane, watermark):
        self.log.append(("advance", lane, watermark))

    def batches(self):
        return [as_rows(entry[1]) for entry in self.log if entry[0] == "send"]

    def records(self):
        return [record for batch in self.batches() for record in batch.records()]

    def values(self):
        return [value for batch in self.batches() for value in batch.values]

    def watermarks(self):
        return [entry[2] for entry in self.log if entry[0] == "advance"]

    def late_for_a_next_step(self):
        """Records whose time is below a watermark that was sent before them."""
        reached, late = MIN_TIME, []
        for entry in self.log:
            if entry[0] == "advance":
                reached = reached if entry[2] == IDLE else max(reached, entry[2])
            else:
                batch = as_rows(entry[1])
                late += [(r, t) for r, t in zip(batch.records(), batch.times, strict=True) if t < reached]
        return late


class Into:
    """An outlet that leads into a port of an operator."""

    def __init__(self, operator, port=0):
        self.operator, self.port = operator, port

    def send(self, batch):
        self.operator.process(self.port, batch)

    def advance(self, lane, watermark):
        self.operator.advance(self.port, lane, watermark)


def start(step, *, on_error=None, wake=None):
    """The step's operator and a tape per output."""
    ctx = StepContext(step.name)
    if on_error == "skip":
        ctx.on_error = Skip()
    if wake is not None:
        ctx.wake = wake
    operator = step.operator(ctx)
    tapes = tuple(Tape() for _ in step.output_names())
    operator.connect(tapes)
    return operator, *tapes


def restart(step, operator):
    """A fresh operator with the state of `operator`, through bytes; its tapes are new."""
    assert isinstance(operator, KeyedOperator)
    keys = list(operator.state)
    plain = codec.loads(
        codec.dumps([keys, [operator.dump(operator.state[key]) for key in keys], operator.dump_local()])
    )
    fresh, *tapes = start(step)
    fresh.load_local([plain[2]])
    fresh.state.update({key: fresh.load(value) for key, value in zip(plain[0], plain[1], strict=True)})
    fresh.restored()
    return fresh, *tapes


def rows(*records, lane=0, keyed=True, timed=True):
    """A batch of (key, time, value)."""
    return Rows(
        [value for _, _, value in records],
        [key for key, _, _ in records] if keyed else None,
        [time for _, time, _ in records] if timed else None,
        lane,
    )


__all__ = ["END_TIME", "IDLE", "MIN_TIME", "Into", "Keyed", "Rows", "Tape", "restart", "rows", "start"]
