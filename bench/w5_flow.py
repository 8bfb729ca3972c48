"""The model of W5: a source, a keyed fold, and behind another shuffle a sink that notes when records arrive."""

MODULE = '''\
"""Each key's records are numbered by a keyed step; the sink notes them with the time (monotonic ns)."""

import os
import time
from dataclasses import dataclass

import penstock as ps

ARRIVED = {arrived!r}


class NoteWriter(ps.Writer):
    def __init__(self):
        self.out = os.open(ARRIVED, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, records):
        now = time.monotonic_ns()
        lines = b"".join(b"%d %d %d\\n" % (now, record[0], record[1]) for record in records)
        os.write(self.out, lines)

    def close(self):
        os.close(self.out)

    abort = close


@dataclass(frozen=True)
class Note(ps.Sink):
    def open(self, ctx):
        return NoteWriter()


flow = ps.Flow({name!r})
(
    flow.source("numbers", ps.sequence(rate={rate}))
    .key_by("key", lambda number: number % 50)
    .fold("number", 0, lambda state, number: (state + 1, (number % 50, state + 1)))
    .map("values", lambda record: record.value)
    .key_by("again", lambda record: record[0] + 1000)
    .fold("pass", None, lambda state, record: (None, record))
    .map("pairs", lambda record: record.value)
    .sink("out", Note())
)
'''
LARGE = (
    MODULE.split("flow = ps.Flow")[0]
    + """
def number(state, number):
    count = 1 if state is None else state[1] + 1
    return [state[0] if state else "x" * 200, count], (number, count)


flow = ps.Flow({name!r})
first = flow.source("filling", ps.sequence({keys}))
later = flow.source("numbers", ps.sequence(rate={rate}))
(
    first.merge("both", later)
    .key_by("key", lambda number: number % {keys})
    .fold("large", None, number)
    .map("values", lambda record: record.value)
    .filter("again", lambda record: record[1] > 1)
    .key_by("one", lambda record: 0)
    .fold("pass", None, lambda state, record: (None, record))
    .map("pairs", lambda record: record.value)
    .sink("out", Note())
)
"""
)
"""A keyed step with a large state; the sink notes only what comes at the steady rate."""
RACE = '''\
"""Words as fast as they go: one process splits, another counts."""

import penstock as ps

WORDS = [f"w{{(i * 7919) % 20000}}" for i in range(100_000)]

flow = ps.Flow({name!r})
(
    flow.source("lines", ps.sequence())
    .flat_map("split", lambda n: WORDS[n % 10_000 * 10 : n % 10_000 * 10 + 10])
    .key_by("word", lambda word: word)
    .count("count")
    .sink("out", ps.null())
)
'''
