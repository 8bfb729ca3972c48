"""W1 on Flink SQL: split, grouped count in streaming mode (an update per record), the `blackhole` sink; parallelism 2.

Flink's own expressions; no Python function sees a record. After a warming run, a short and a long one: the difference
of their times is without start-up.
"""

import time
from pathlib import Path

from bench.measure import report, setting
from pyflink.table import EnvironmentSettings, TableEnvironment

QUERY = (
    "INSERT INTO gone SELECT word, COUNT(*) FROM {table} CROSS JOIN UNNEST(SPLIT(line, ' ')) AS t (word) GROUP BY word"
)


def run(table: str) -> float:
    began = time.monotonic()
    env.execute_sql(QUERY.format(table=table)).wait()
    return time.monotonic() - began


def declare(table: str, path: str) -> None:
    env.execute_sql(
        f"CREATE TABLE {table} (line STRING) WITH "
        f"('connector' = 'filesystem', 'path' = '{Path(path).resolve().as_uri()}', 'format' = 'raw')"
    )


env = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
env.get_config().set("parallelism.default", "2")
env.execute_sql("CREATE TABLE gone (word STRING, n BIGINT) WITH ('connector' = 'blackhole')")
declare("short", setting("INPUT"))
declare("long", setting("DIRECTORY"))
run("short")
short = run("short")
long = run("long")
report(words=int(setting("WORDS")) * (int(setting("COPIES")) - 1), seconds=long - short)
