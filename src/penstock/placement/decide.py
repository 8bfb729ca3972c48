"""Whether a proposed plan replaces the running one (SYSTEMS S6): a pure rule that remembers nothing itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from penstock.errors import UsageError
from penstock.placement.explain import Explanation, Move, explain
from penstock.placement.feasible import Excess
from penstock.placement.plan import ExecutorKey, Placement, Problem, WorkerSlot


@dataclass(frozen=True, slots=True)
class Policy:
    """When moving is worth it."""

    threshold: float = 0.1
    """The share of the traffic between nodes that a plan has to save."""
    interval: float = 30.0
    """Seconds from one change of plan to the next, at least."""
    guard: float = 300.0
    """Seconds in which an executor does not go back to where it came from."""

    def __post_init__(self) -> None:
        if not (0 <= self.threshold <= 1 and self.interval >= 0 and self.guard >= 0):
            raise UsageError(
                f"a rescheduling policy cannot be {self}", remedy="the threshold is from 0 to 1, times are not negative"
            )


@dataclass(frozen=True, slots=True)
class PastMove:
    """An executor that left a worker."""

    executor: ExecutorKey
    source: WorkerSlot
    at: float


@dataclass(frozen=True)
class History:
    """What was done lately. Times are of one clock, in seconds."""

    changed: float | None = None
    """When the plan was last changed."""
    moves: tuple[PastMove, ...] = ()

    def after(self, moves: Iterable[Move], now: float, policy: Policy) -> History:
        """With these moves, without what the guard does not ask about any more."""
        kept = [move for move in self.moves if move.at > now - policy.guard]
        return History(now, (*kept, *(PastMove(move.executor, move.source, now) for move in moves)))


@dataclass(frozen=True)
class Verdict:
    """Whether to change the plan."""

    apply: bool
    reason: str
    explanation: Explanation


def decide(
    problem: Problem, proposal: Placement, now: float, history: History | None = None, policy: Policy | None = None
) -> Verdict:
    """Whether the proposal replaces `problem.current` at `now`. Less overload is reason enough; otherwise it has to
    save strictly more than nothing, a share of the cut, and within the problem's horizon more than its moves cost."""
    history, policy = history or History(), policy or Policy()
    why = explain(problem, proposal)
    apply, reason = _judge(problem, why, now, history, policy)
    return Verdict(apply, reason, why)


def _judge(problem: Problem, why: Explanation, now: float, history: History, policy: Policy) -> tuple[bool, str]:
    if why.started:
        return True, f"{len(why.started)} executors have no worker"
    if not why.moves:
        return False, "the running plan stays: nothing would move"
    if history.changed is not None and now - history.changed < policy.interval:
        return False, f"the plan was changed {now - history.changed:.0f} s ago, less than {policy.interval:.0f} s"
    lighter = severity(why.after.broken) < severity(why.before.broken) - 1e-9
    if lighter:
        return True, f"the running plan breaks a limit: {why.before.broken[0]}"
    if severity(why.after.broken) > severity(why.before.broken) + 1e-9:
        return False, f"the proposal breaks a limit: {why.after.broken[0]}"
    return _worth(problem, why, now, history, policy)


def _worth(problem: Problem, why: Explanation, now: float, history: History, policy: Policy) -> tuple[bool, str]:
    before = why.before.share
    saved = 1 - why.after.share / before if before > 0 else 0.0
    if why.gain <= 0 or saved <= 0:
        return False, "the proposal saves no traffic between nodes"
    if saved < policy.threshold:
        return False, f"the proposal saves {saved:.1%} of the traffic between nodes, less than {policy.threshold:.1%}"
    if why.gain * problem.horizon <= why.cost:
        return False, (
            f"in {problem.horizon:g} s the proposal saves {why.gain * problem.horizon:,.0f} bytes;"
            f" its moves cost {why.cost:,}"
        )
    back = {(move.executor, move.source) for move in history.moves if move.at > now - policy.guard}
    for move in why.moves:
        if (move.executor, move.target) in back:
            return False, f"{move.executor} left {move.target} less than {policy.guard:.0f} s ago"
    return True, str(why)


def severity(broken: Iterable[Excess]) -> float:
    """By how much limits are broken, as a share of them, added up."""
    return sum((excess.used - excess.bound) / max(excess.bound, 1e-9) for excess in broken)
