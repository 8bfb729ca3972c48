"""W3 on Bytewax: records at a rate through a shuffle between two processes, latency at the sink."""

import os
import sys
import time
from datetime import UTC, datetime, timedelta

import bytewax.operators as op
from bench.measure import Latencies, Pace, key_of, schedule
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition


class Numbers(FixedPartitionedSource):
    def list_parts(self):
        return ["one"]

    def build_part(self, step_id, for_part, resume_state):
        return NumbersPartition()


class NumbersPartition(StatefulSourcePartition):
    def __init__(self):
        self.pace = Pace(*schedule())

    def next_batch(self):
        if self.pace.ended:
            raise StopIteration
        return [(n, time.monotonic_ns(), os.getpid()) for n in self.pace.due()]

    def next_awake(self):
        return datetime.now(UTC) + timedelta(seconds=self.pace.wait())

    def snapshot(self):
        return None


class Arrivals(DynamicSink):
    def build(self, step_id, worker_index, worker_count):
        return ArrivalsPartition()


class ArrivalsPartition(StatelessSinkPartition):
    def __init__(self):
        self.seen = Latencies()

    def write_batch(self, items):
        for _key, (_count, number, emitted, pid) in items:
            if pid != os.getpid():  # only what went through the shuffle to the other process
                self.seen.add(number, emitted)

    def close(self):
        self.seen.report()


def count(state, record):
    state = (state or 0) + 1
    return state, (state, *record)


flow = Dataflow("w3")
numbers = op.input("numbers", flow, Numbers())
keyed = op.key_on("key", numbers, lambda record: key_of(record[0]))
counts = op.stateful_map("count", keyed, count)
op.output("out", counts, Arrivals())

if __name__ == "__main__":
    from bytewax.testing import cluster_main

    process, ports = int(sys.argv[1]), sys.argv[2:]
    cluster_main(flow, [f"127.0.0.1:{port}" for port in ports], process)
