"""W1 on Pathway: split by a Python function, grouped count with its updates, a sink that drops; two processes.

Pathway emits changes per commit, here every 100 ms, not per record. The clock runs from the first line that is handed
over until everything is processed.
"""

import time

import pathway as pw
from bench.measure import report, setting

began = 0


class Lines(pw.io.python.ConnectorSubject):
    """Lines of a file."""

    def run(self):
        global began
        began = time.monotonic_ns()
        with open(setting("INPUT")) as lines:
            for line in lines:
                self.next(line=line)


class Schema(pw.Schema):
    line: str


@pw.udf(deterministic=True)
def split(line: str) -> list[str]:
    return line.split()


if __name__ == "__main__":
    lines = pw.io.python.read(Lines(), schema=Schema, autocommit_duration_ms=100)
    words = lines.select(word=split(pw.this.line)).flatten(pw.this.word)
    counts = words.groupby(pw.this.word).reduce(pw.this.word, n=pw.reducers.count())
    pw.io.null.write(counts)
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)
    if began:  # one of the processes reads
        report(words=int(setting("WORDS")), seconds=(time.monotonic_ns() - began) / 1e9)
