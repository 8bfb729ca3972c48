"""W3 on Ray actors: a source actor calls a counting actor in another process; latency where the record is counted.

The source sends all records that are due in one call, and keeps a few calls under way: the batching that Penstock's
channels do by themselves, done by hand.
"""

import time

import ray
from bench.measure import Latencies, Pace, key_of, schedule

UNDER_WAY = 4


@ray.remote(num_cpus=1)
class Counter:
    def __init__(self):
        self.counts = {}
        self.seen = Latencies()

    def take(self, records):
        for key, number, emitted in records:
            self.counts[key] = self.counts.get(key, 0) + 1
            self.seen.add(number, emitted)

    def report(self):
        self.seen.report()


@ray.remote(num_cpus=1)
class Source:
    def run(self, counter):
        pace, calls = Pace(*schedule()), []
        while not pace.ended:
            records = [(key_of(n), n, time.monotonic_ns()) for n in pace.due()]
            if records:
                calls.append(counter.take.remote(records))
            if len(calls) >= UNDER_WAY:
                _, calls = ray.wait(calls, num_returns=1)
            pace.sleep()
        ray.get(calls)


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    counter, source = Counter.remote(), Source.remote()
    ray.get(counter.report.remote())
    ray.get(source.run.remote(counter))
    ray.get(counter.report.remote())
    ray.shutdown()
