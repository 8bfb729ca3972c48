"""The hand-written limits: what Python, msgspec and ZeroMQ allow on this machine, without an engine around them.

    python -m bench.limit loop          W1: split and count in one process
    python -m bench.limit w1 [BATCH]    W1: split in one process, count in another, frames over a ZeroMQ ipc socket
    python -m bench.limit w3            W3: records one way at BENCH_RATE, each sent as soon as it is due
    python -m bench.limit ping          a raw round trip, one message at a time

W1's consumer keeps the running count of every key and makes the list of running counts of each batch, which is what
the flows emit. The inner loop is the fastest of those that were tried (`try` over `get`, lists over tuples).
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec
import zmq

from bench.measure import KEYS, Latencies, Pace, Throughput, key_of, report, schedule, setting

LINES_AT_ONCE = 128
PINGS = 5000


def batches(path: str, size: int) -> Iterator[list[str]]:
    """Batches of about `size` words of a text file."""
    lines_at_once = max(1, size // 10)
    with open(path, encoding="utf-8") as lines:
        while block := list(islice(lines, lines_at_once)):
            words: list[str] = []
            for line in block:
                words += line.split()
            yield words


def count(words: list[str], counts: dict[str, int]) -> list[int]:
    """The running count of each word."""
    result: list[int] = []
    append = result.append
    for word in words:
        try:
            number = counts[word] + 1
        except KeyError:
            number = 1
        counts[word] = number
        append(number)
    return result


def loop(path: str) -> None:
    """Everything in one process."""
    counts: dict[str, int] = {}
    seen = Throughput()
    for words in batches(path, 1024):
        seen.add(len(count(words, counts)))
    seen.report()


def _socket(context: zmq.Context[Any], kind: int, endpoint: str, *, bind: bool) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(kind)
    socket.set_hwm(0 if bind else 64)
    (socket.bind if bind else socket.connect)(endpoint)
    return socket


def count_words(endpoint: str) -> None:
    """The consuming process of W1."""
    counts: dict[str, int] = {}
    seen = Throughput()
    decoder = msgspec.msgpack.Decoder(list[str])
    with zmq.Context() as context, _socket(context, zmq.PULL, endpoint, bind=True) as inbox:
        inbox.set_hwm(64)
        while frame := inbox.recv():
            seen.add(len(count(decoder.decode(frame), counts)))
    seen.report()


def two_processes(path: str, size: int) -> None:
    """W1 over two processes."""
    with tempfile.TemporaryDirectory() as directory:
        endpoint = f"ipc://{directory}/words"
        consumer = multiprocessing.get_context("spawn").Process(target=count_words, args=(endpoint,))
        consumer.start()
        encoder = msgspec.msgpack.Encoder()
        with zmq.Context() as context, _socket(context, zmq.PUSH, endpoint, bind=False) as out:
            for words in batches(path, size):
                out.send(encoder.encode(words))
            out.send(b"")
            consumer.join()


def measure_arrivals(endpoint: str) -> None:
    """The consuming process of W3: a running count per key, and the arrival of every record."""
    counts: dict[str, int] = {}
    seen = Latencies()
    with zmq.Context() as context, _socket(context, zmq.PULL, endpoint, bind=True) as inbox:
        while frame := inbox.recv():
            key, number, emitted = msgspec.msgpack.decode(frame)
            counts[key] = counts.get(key, 0) + 1
            seen.add(number, emitted)
    seen.report()


def one_way() -> None:
    """W3: every record is a message of its own."""
    rate, total = schedule()
    with tempfile.TemporaryDirectory() as directory:
        endpoint = f"ipc://{directory}/records"
        consumer = multiprocessing.get_context("spawn").Process(target=measure_arrivals, args=(endpoint,))
        consumer.start()
        with zmq.Context() as context, _socket(context, zmq.PUSH, endpoint, bind=False) as out:
            time.sleep(1.0)  # the consumer's start is not part of the measurement
            pace = Pace(rate, total)
            while not pace.ended:
                for number in pace.due():
                    out.send(msgspec.msgpack.encode((key_of(number % KEYS), number, time.monotonic_ns())))
                pace.sleep()
            out.send(b"")
            consumer.join()


def echo(endpoint: str) -> None:
    """The other end of `ping`."""
    with zmq.Context() as context, _socket(context, zmq.PAIR, endpoint, bind=True) as peer:
        while frame := peer.recv():
            peer.send(frame)


def ping() -> None:
    """Round trips of one small message, one after the other."""
    with tempfile.TemporaryDirectory() as directory:
        endpoint = f"ipc://{directory}/ping"
        other = multiprocessing.get_context("spawn").Process(target=echo, args=(endpoint,))
        other.start()
        trips = []
        with zmq.Context() as context, _socket(context, zmq.PAIR, endpoint, bind=False) as peer:
            for _ in range(PINGS):
                began = time.monotonic_ns()
                peer.send(b"x" * 32)
                peer.recv()
                trips.append(time.monotonic_ns() - began)
            peer.send(b"")
            other.join()
    trips = sorted(trips[PINGS // 10 :])
    report(p50=trips[len(trips) // 2] / 1e6, p99=trips[len(trips) * 99 // 100] / 1e6)


def main(mode: str, size: int = 1024) -> None:
    """See the module."""
    if mode == "loop":
        loop(setting("INPUT"))
    elif mode == "w1":
        two_processes(setting("INPUT"), size)
    elif mode == "w3":
        one_way()
    else:
        ping()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
