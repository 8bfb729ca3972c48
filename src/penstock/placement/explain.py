"""Why a plan: what it changes, in figures that people can read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.placement.cost import cut, move_bytes, rate, total
from penstock.placement.feasible import Excess, excesses, used_resources
from penstock.placement.latency import DEFAULT_HOPS, Hops, latency
from penstock.placement.plan import ExecutorKey, Placement, Problem, Traffic, WorkerSlot


@dataclass(frozen=True, slots=True)
class Move:
    """An executor that would change its worker."""

    executor: ExecutorKey
    source: WorkerSlot
    target: WorkerSlot
    state: int
    """Bytes that it carries."""


@dataclass(frozen=True)
class Situation:
    """What a plan amounts to."""

    cut: Traffic
    """Between nodes."""
    share: float
    """The cut, as a share of all traffic in bytes with the overhead of records; 0 when there is none."""
    load: Mapping[str, float]
    """node -> CPU of its executors, in cores."""
    latency: float
    """Seconds, by `penstock.placement.latency`."""
    broken: tuple[Excess, ...]
    """Limits that it does not keep."""


@dataclass(frozen=True)
class Explanation:
    """The running plan against another one."""

    before: Situation
    after: Situation
    moves: tuple[Move, ...]
    started: tuple[ExecutorKey, ...]
    """Executors that do not run yet."""
    cost: int
    """Bytes that the moves cost, with their overhead."""
    gain: float
    """Bytes per second less between nodes, with the overhead of records."""

    def __str__(self) -> str:
        text = f"cut {self.before.share:.0%} -> {self.after.share:.0%}, {_number(len(self.moves), 'move')}"
        if self.started:
            text += f", {len(self.started)} started"
        text += f", {_amount(self.cost)} to carry" if self.moves else ""
        text += f", latency {self.before.latency * 1e3:.2f} -> {self.after.latency * 1e3:.2f} ms"
        if self.before.broken or self.after.broken:
            text += f", limits broken {len(self.before.broken)} -> {len(self.after.broken)}"
        return text


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _amount(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def situation(problem: Problem, placement: Placement, hops: Hops = DEFAULT_HOPS) -> Situation:
    """What a plan amounts to under the problem's traffic and load."""
    everything, between = total(problem), cut(problem, placement)
    used = used_resources(problem, placement)
    nodes = sorted({worker.node for worker in problem.workers} | used.keys())
    return Situation(
        cut=between,
        share=rate(between) / rate(everything) if rate(everything) > 0 else 0.0,
        load={node: used[node][0] if node in used else 0.0 for node in nodes},
        latency=latency(problem, placement, hops),
        broken=excesses(problem, placement),
    )


def explain(problem: Problem, proposal: Placement, hops: Hops = DEFAULT_HOPS) -> Explanation:
    """The proposal against `problem.current`."""
    running = Placement({}) if problem.current is None else problem.current
    known = set(problem.executors)
    running = Placement({key: slot for key, slot in running.workers.items() if key in known})
    moves = tuple(
        Move(
            key,
            running.workers[key],
            proposal.workers[key],
            problem.load[key].state if key in problem.load else 0,
        )
        for key in running.moves(proposal)
    )
    before, after = situation(problem, running, hops), situation(problem, proposal, hops)
    return Explanation(
        before=before,
        after=after,
        moves=moves,
        started=tuple(sorted(proposal.workers.keys() - running.workers.keys())),
        cost=sum(move_bytes(problem, move.executor) for move in moves),
        gain=rate(before.cut) - rate(after.cut),
    )
