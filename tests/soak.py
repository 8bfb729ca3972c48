"""`make soak`: the simulators of the protocols with fresh seeds, for as long as one likes.

    make soak                                          each protocol for five minutes
    make soak ARGS="--minutes 60 --only replica"       one of them for an hour
    make soak ARGS="--first 1000000 --seeds 500"       these seeds of each

A seed that breaks a promise is printed with what it saw; the same line reproduces it.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable

from tests.cluster.transaction.simulator import simulate as transaction
from tests.exchange.replica.simulator import simulate as replica
from tests.exchange.split.simulator import simulate as split

PROTOCOLS: dict[str, Callable[[int], object]] = {"transaction": transaction, "replica": replica, "split": split}


def soak(name: str, first: int, seeds: int | None, minutes: float) -> bool:
    """Run seeds of one protocol; whether all kept their promises."""
    until, seed, told = time.monotonic() + 60 * minutes, first, time.monotonic()
    while seeds is None or seed < first + seeds:
        if seeds is None and time.monotonic() > until:
            break
        try:
            PROTOCOLS[name](seed)
        except AssertionError as broken:
            print(f"{name}: seed {seed}: {broken}\n  again: make soak ARGS='--only {name} --first {seed} --seeds 1'")
            return False
        seed += 1
        if time.monotonic() > told + 10 and sys.stdout.isatty():
            told = time.monotonic()
            print(f"\r{name}: {seed - first:,} seeds", end="", flush=True)
    print(f"\r{name}: {seed - first:,} seeds from {first} on, all well")
    return True


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="make soak", description="The simulators with fresh seeds.")
    parser.add_argument("--only", choices=list(PROTOCOLS), help="one protocol; default: all")
    parser.add_argument("--minutes", type=float, default=5.0, help="for each protocol, unless --seeds is given")
    parser.add_argument("--seeds", type=int, help="how many of each")
    parser.add_argument("--first", type=int, help="the first seed; default: one that nobody has seen")
    options = parser.parse_args()
    first = random.SystemRandom().randrange(10**6, 10**9) if options.first is None else options.first
    names = [options.only] if options.only else list(PROTOCOLS)
    try:
        return 0 if all(soak(name, first, options.seeds, options.minutes) for name in names) else 1
    except KeyboardInterrupt:
        print("\nended by hand")
        return 130


if __name__ == "__main__":
    sys.exit(main())
