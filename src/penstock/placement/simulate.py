"""The published evaluation as a calculation (SYSTEMS S8): chains of steps, plans by different strategies, and what they
cost by `penstock.placement.latency`. There are no queues, no noise and no clock in it, so figures come out the same
everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random

from penstock.placement.decide import History, Policy, decide
from penstock.placement.explain import situation
from penstock.placement.latency import DEFAULT_HOPS, Hops
from penstock.placement.limits import Limits
from penstock.placement.monitor import Monitor
from penstock.placement.plan import ExecutorKey, ExecutorLoad, NodeCapacity, Placement, Problem, Traffic, WorkerSlot
from penstock.placement.registry import place


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of steps like the reference topology of Aniello, Baldoni and Querzoni (DEBS 2013, section 5)."""

    steps: int = 6
    executors: int = 2
    """Per step."""
    rate: float = 1000.0
    """Records per second out of each source executor."""
    size: float = 100.0
    """Bytes per record."""
    skew: float = 0.8
    """The share of an executor's records that goes to its favourite consumer; the rest goes to the others alike."""
    cpu: float = 0.1
    """Cores per executor."""
    state: int = 1_000_000
    """Bytes per executor."""
    chains: int = 1
    """So many models of this kind."""
    seed: int = 0
    """For who is whose favourite."""

    def problem(self, nodes: int, slots: int = 1, limits: Limits | None = None, cpus: float = 2.0) -> Problem:
        """The chain, running, on so many nodes with so many workers each; no plan yet."""
        random = Random(self.seed)
        traffic: dict[tuple[ExecutorKey, ExecutorKey], Traffic] = {}
        keys: list[ExecutorKey] = []
        for number in range(self.chains):
            stages = [
                [ExecutorKey(f"chain{number}", stage, index) for index in range(self.executors)]
                for stage in range(self.steps)
            ]
            keys += [key for stage in stages for key in stage]
            for producers, consumers in pairwise(stages):
                favourites = random.sample(consumers, len(consumers))
                for producer, favourite in zip(producers, favourites, strict=True):
                    for consumer in consumers:
                        traffic[producer, consumer] = self._flow(consumer == favourite)
        return Problem(
            executors=tuple(keys),
            workers=tuple(WorkerSlot(f"n{node:03}", slot) for node in range(nodes) for slot in range(slots)),
            nodes={f"n{node:03}": NodeCapacity(f"n{node:03}", cpus=cpus) for node in range(nodes)},
            load=dict.fromkeys(keys, ExecutorLoad(cpu=self.cpu, state=self.state)),
            traffic=traffic,
            links=tuple(traffic),
            limits=limits or Limits(),
        )

    def _flow(self, favourite: bool) -> Traffic:
        rest = (1 - self.skew) / (self.executors - 1) if self.executors > 1 else 0.0
        share = (self.skew if favourite else rest) if self.executors > 1 else 1.0
        return Traffic(self.rate * share, self.rate * share * self.size)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A strategy's plan for a problem, in figures."""

    strategy: str
    latency: float
    """Seconds."""
    cut: float
    """Records per second between nodes."""
    moves: int


def compare(problem: Problem, strategies: Iterable[str], hops: Hops = DEFAULT_HOPS) -> tuple[Outcome, ...]:
    """What each strategy makes of a problem. "even" and "offline" plan from nothing; the others start from even's plan,
    as they do on a cluster."""
    running = place("even", problem)
    found = []
    for name in strategies:
        plan = place(name, problem if name in {"even", "offline"} else replace(problem, current=running))
        state = situation(problem, plan, hops)
        found.append(Outcome(name, state.latency, state.cut.records, len(running.moves(plan))))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Moment:
    """One second of a simulated run."""

    at: float
    latency: float
    moves: int
    reason: str


def timeline(
    problem: Problem,
    seconds: int = 120,
    switch: int = 50,
    strategy: str = "adaptive",
    policy: Policy | None = None,
    hops: Hops = DEFAULT_HOPS,
) -> tuple[Moment, ...]:
    """A run that begins with the even plan; from second `switch` on, `strategy` proposes by what the monitor has seen,
    and `penstock.placement.decide` decides."""
    policy = policy or Policy()
    monitor, history, running = Monitor(), History(), place("even", problem)
    found = []
    for second in range(seconds):
        now = float(second)
        monitor.observe(now, problem.load, problem.traffic)
        moves, reason = 0, "even"
        if second >= switch:
            running, history, moves, reason = _reconsider(problem, running, strategy, now, monitor, history, policy)
        found.append(Moment(now, situation(problem, running, hops).latency, moves, reason))
    return tuple(found)


def _reconsider(
    problem: Problem, running: Placement, strategy: str, now: float, monitor: Monitor, history: History, policy: Policy
) -> tuple[Placement, History, int, str]:
    seen = monitor.problem(replace(problem, current=running), now)
    proposal = place(strategy, seen)
    verdict = decide(seen, proposal, now, history, policy)
    if not verdict.apply:
        return running, history, 0, verdict.reason
    moves = verdict.explanation.moves
    return proposal, history.after(moves, now, policy), len(moves), verdict.reason
