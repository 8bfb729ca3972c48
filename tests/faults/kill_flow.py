"""The flow that the kill tests run: a keyed running count and a keyed running sum, to files and to a database."""

import penstock as ps

ps.config.defaults(input="", out="", db="", rate=10000)


def parse(line: str) -> tuple[str, int]:
    key, _, number = line.partition(" ")
    return key, int(number)


def add(total: int, record: tuple[str, int]) -> tuple[int, int]:
    return total + record[1], total + record[1]


class Throttle:
    """Slows the flow down without a timer in the test: every record costs a little work."""

    def __call__(self, record: tuple[str, int]) -> tuple[str, int]:
        sum(range(int(ps.config["rate"])))
        return record


flow = ps.Flow("kill")
numbers = (
    flow.source("lines", ps.files(ps.config["input"] + "/*.txt"))
    .map("parse", parse)
    .map("work", Throttle())
    .key_by("key", lambda record: record[0])
)
totals = numbers.fold("total", 0, add)
totals.sink("files", ps.ndjson(ps.config["out"] + "/"))
totals.sink("table", ps.sql(ps.config["db"], "totals"))
