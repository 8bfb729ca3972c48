"""W1 on Pathway: split by a Python function, grouped count with its updates, a sink that drops; two processes.

A static file is one batch to Pathway, so the rate is taken from the difference between a short and a long run.
"""

import sys
import time

import pathway as pw

from bench.measure import report, setting


class Lines(pw.io.python.ConnectorSubject):
    """Lines of a file; Pathway commits what it has every `autocommit_duration_ms`, so counts run."""

    def run(self):
        with open(setting("INPUT")) as lines:
            for line in lines:
                self.next(line=line)


class Schema(pw.Schema):
    line: str


@pw.udf(deterministic=True)
def split(line: str) -> list[str]:
    return line.split()


if __name__ == "__main__":
    if setting("SOURCE") == "python":
        lines = pw.io.python.read(Lines(), schema=Schema, autocommit_duration_ms=100)
    else:
        lines = pw.io.plaintext.read(setting("INPUT"), mode="static").select(line=pw.this.data)
    words = lines.select(word=split(pw.this.line)).flatten(pw.this.word)
    counts = words.groupby(pw.this.word).reduce(pw.this.word, n=pw.reducers.count())
    pw.io.null.write(counts)
    began = time.monotonic_ns()
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)
    report(seconds=(time.monotonic_ns() - began) / 1e9)
