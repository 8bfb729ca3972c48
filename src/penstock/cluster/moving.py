"""Planned moves: the primary of an executor goes to another node while everything runs; pure.

A standby is made at the target unless there is one; when it protects, the primary is ordered to hand over to it; when
it says that it has caught up, it is appointed. Until then the executor is where it was: if the target is lost, or time
runs out, its standby is removed and the primary goes on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from penstock.cluster.plan import Move, RunEntry
from penstock.cluster.replicas import Draft
from penstock.exchange.replica.assignment import Mode
from penstock.exchange.replica.messages import Caught


def advance(draft: Draft, moves: Mapping[str, Move], run: Mapping[str, RunEntry], lost: Collection[str]) -> None:
    """One step of each move. `lost`: executors whose primary is not well: they are promoted first."""
    for executor, move in sorted(moves.items()):
        if executor not in draft.records or move.generation != draft.plan.generation:
            draft.settle(executor)
        elif executor not in lost:
            _advance(draft, executor, move, run)
    for executor in [executor for executor in draft.handovers if executor not in moves]:
        if draft.handovers[executor] in draft.records[executor].foreign:
            continue  # that is an update
        draft.drop_standby(executor, draft.handovers[executor])  # whoever wanted it does so no longer


def give_up(draft: Draft, moves: Mapping[str, Move], why: str) -> None:
    """None of the moves can be now."""
    for executor, move in sorted(moves.items()):
        if executor in draft.records:
            _give_up(draft, executor, draft.standby_on(executor, move.to), why)
        else:
            draft.settle(executor)


def _advance(draft: Draft, executor: str, move: Move, run: Mapping[str, RunEntry]) -> None:
    record, model = draft.records[executor], draft.plan.model
    here = draft.node(record.primary)
    target = draft.standby_on(executor, move.to)
    if here == move.to:
        draft.settle(executor)
        draft.say("executor.moved", f"executor {executor} of {model} is on node {here} now")
    elif move.to not in draft.live:
        _give_up(draft, executor, target, f"node {move.to} is gone")
    elif draft.now > move.deadline:
        _give_up(draft, executor, target, f"it was not done in {move.deadline - move.asked:.0f} s")
    elif not target:
        draft.add_standby(executor, move.to, Mode.ACTIVE)
    elif draft.handovers.get(executor) != target:
        if target in record.protecting:
            draft.order_handover(executor, target)
    elif caught(run.get(target), target, record.since) and draft.hand_over(executor, target):
        draft.settle(executor)
        draft.say("executor.moved", f"executor {executor} of {model} moved from node {here} to node {move.to}")


def caught(entry: RunEntry | None, standby: str, since: tuple[int, int]) -> bool:
    """Whether a standby has reported that it has all that its primary has."""
    return entry is not None and any(
        isinstance(report, Caught) and report.standby == standby and report.epoch == since for report in entry.reports
    )


def _give_up(draft: Draft, executor: str, target: str, why: str) -> None:
    """The primary may have stopped for the hand-over; it goes on when it hears that the standby is removed."""
    others = draft.records[executor].standbys.keys() - draft.records[executor].foreign - {target}
    if target and (others or draft.handovers.get(executor) == target):
        draft.drop_standby(executor, target)
    draft.settle(executor)
    text = f"executor {executor} of {draft.plan.model} stays where it is, it was not moved: {why}"
    draft.say("move.failed", text, "warning")
