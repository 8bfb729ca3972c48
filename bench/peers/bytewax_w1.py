"""W1 on Bytewax: a running count per word with `stateful_map`, two processes, a sink that drops."""

import sys

import bytewax.operators as op
from bench.measure import Throughput, setting
from bytewax.connectors.files import FileSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition


class Drop(DynamicSink):
    def build(self, step_id, worker_index, worker_count):
        return DropPartition()


class DropPartition(StatelessSinkPartition):
    def __init__(self):
        self.seen = Throughput()

    def write_batch(self, items):
        self.seen.add(len(items))

    def close(self):
        self.seen.report()


def count(state, value):
    state = (state or 0) + 1
    return state, state


flow = Dataflow("w1")
lines = op.input("lines", flow, FileSource(setting("INPUT")))
words = op.flat_map("split", lines, str.split)
keyed = op.key_on("word", words, lambda word: word)
counts = op.stateful_map("count", keyed, count)
op.output("out", counts, Drop())

if __name__ == "__main__":
    # The way the documentation gives for several processes on one machine.
    from bytewax.testing import cluster_main

    process, ports = int(sys.argv[1]), sys.argv[2:]
    cluster_main(flow, [f"127.0.0.1:{port}" for port in ports], process)
