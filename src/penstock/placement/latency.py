"""An estimate of what a record's way through a model takes: the sum of its hops, without queues.

It tells plans apart by where their hops lead; it does not predict what a loaded cluster will show.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.placement.plan import Placement, Problem, WorkerSlot

_Stage = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Hops:
    """What one hop takes, in seconds."""

    worker: float = 20e-6
    """Inside a worker."""
    node: float = 100e-6
    """To another worker of the node."""
    network: float = 1e-3
    """To another node."""

    def between(self, source: WorkerSlot, target: WorkerSlot) -> float:
        """From one worker to another."""
        if source == target:
            return self.worker
        return self.node if source.node == target.node else self.network


DEFAULT_HOPS = Hops()


def latency(problem: Problem, placement: Placement, hops: Hops = DEFAULT_HOPS) -> float:
    """Seconds from source to sink: per pair of stages the mean hop of their records, added up along the longest way of
    each model, and the mean of the models. 0 when nothing flows."""
    weighed: dict[tuple[_Stage, _Stage], list[float]] = {}
    for (producer, consumer), flow in sorted(problem.traffic.items(), key=lambda entry: entry[0]):
        source, target = placement.workers.get(producer), placement.workers.get(consumer)
        if source is not None and target is not None and flow.records > 0:
            own = weighed.setdefault(((producer.model, producer.stage), (consumer.model, consumer.stage)), [0.0, 0.0])
            own[0] += flow.records * hops.between(source, target)
            own[1] += flow.records
    steps = {pair: total / records for pair, (total, records) in weighed.items()}
    longest: dict[str, float] = {}
    for (model, _), seconds in _longest(steps).items():
        longest[model] = max(longest.get(model, 0.0), seconds)
    return sum(longest.values()) / len(longest) if longest else 0.0


def _longest(steps: dict[tuple[_Stage, _Stage], float]) -> dict[_Stage, float]:
    """The longest way to each stage. Circles, which flows do not have, are cut where they are first met."""
    sources: dict[_Stage, list[tuple[_Stage, float]]] = {}
    for (source, target), seconds in steps.items():
        sources.setdefault(target, []).append((source, seconds))
        sources.setdefault(source, [])
    found: dict[_Stage, float] = {}
    left = dict(sources)
    while left:
        ready = sorted(stage for stage, own in left.items() if not any(source in left for source, _ in own))
        for stage in ready or [min(left)]:
            found[stage] = max((found.get(source, 0.0) + seconds for source, seconds in left[stage]), default=0.0)
            del left[stage]
    return found
