"""The text of W1: words of a Zipf distribution, ten per line, made once from a fixed seed and kept in bench/.data."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path

DATA = Path(__file__).parent / ".data"
DISTINCT = 20_000
WORDS_PER_LINE = 10
SEED = 20_000
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


def vocabulary() -> list[str]:
    """`DISTINCT` different words, the frequent ones short, as in a natural language."""
    words = itertools.chain.from_iterable(
        ("".join(letters) for letters in itertools.product(_LETTERS, repeat=length)) for length in itertools.count(2)
    )
    chosen = list(itertools.islice(words, DISTINCT))
    return [word if len(word) < 4 else word + _LETTERS[rank % 7 : rank % 7 + 3] for rank, word in enumerate(chosen)]


def words_file(words: int) -> Path:
    """A file with `words` words (10 per line); written at the first call."""
    path = DATA / f"words-{words}.txt"
    if path.exists():
        return path
    DATA.mkdir(exist_ok=True)
    known = vocabulary()
    weights = list(itertools.accumulate(1 / rank for rank in range(1, DISTINCT + 1)))
    draw = random.Random(SEED)
    partial = path.with_suffix(f".{os.getpid()}")
    with partial.open("w", encoding="ascii") as out:
        left = words
        while left > 0:
            drawn = draw.choices(known, cum_weights=weights, k=min(left, 100_000))
            for start in range(0, len(drawn), WORDS_PER_LINE):
                out.write(" ".join(drawn[start : start + WORDS_PER_LINE]) + "\n")
            left -= len(drawn)
    partial.rename(path)
    return path


def words_directory(words: int, copies: int) -> Path:
    """A directory in which the same file appears `copies` times, for engines with a long start-up."""
    directory = DATA / f"words-{words}-x{copies}"
    directory.mkdir(parents=True, exist_ok=True)
    source = words_file(words)
    for copy in range(copies):
        link = directory / f"part-{copy:03}.txt"
        if not link.exists():
            os.link(source, link)
    return directory
