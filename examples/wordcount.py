"""Word count: how often each word occurs in a book.

penstock run examples/wordcount.py --workers 2
penstock run examples/wordcount.py --set input=/var/log/syslog
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import penstock as ps

ps.config.defaults(input=str(Path(__file__).parent / "data" / "book.txt"))


class WordCount(ps.MapReduce):
    """One result per word at the end of a bounded input; over an unbounded one, every new total as it comes."""

    def map(self, record: str) -> Iterator[tuple[str, int]]:
        for word in record.split():
            yield word, 1

    def combine(self, key: str, values: Iterable[int]) -> int:
        return sum(values)

    def reduce(self, key: str, values: Iterable[int]) -> int:
        return sum(values)


flow = WordCount.flow(ps.files(ps.config["input"]), ps.stdout())
