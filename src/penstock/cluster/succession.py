"""Who takes over and who protects: what the leader does about the replicas of a model; pure.

In this order, for all executors at once: what replicas have reported; standbys that are lost are removed, as their
primaries wait for that word; a primary that is lost is replaced by a standby that protects it; moves go on; whoever has
no standby gets one, on another node. When an executor has lost its primary and nobody may take over, all have to be
restored from a durable checkpoint: `Fallen`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from penstock.cluster import moving, shifting, upgrading
from penstock.cluster.decisions import Decision, Elsewhere, Later, Nothing, Sweep, WritePlan
from penstock.cluster.plan import GONE, SILENT, Lives, ModelState, Move, Plan, RunEntry, present
from penstock.cluster.replicas import Draft, add_standby, lives, told_of
from penstock.exchange.replica.assignment import Mode
from penstock.exchange.replica.messages import Complete, Diverged, Refused

SILENCES_ALLOWED = 5
"""So many primaries of a model are replaced within a minute because they were silent: after that it must be what the
model computes, and would silence the next one too."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0


class Health(Enum):
    """How a replica is, as far as the leader knows."""

    STARTING = "starting"
    WELL = "well"
    SILENT = "silent"
    GONE = "gone"


@dataclass(frozen=True)
class Fallen:
    """These executors have lost all that they had in memory."""

    executors: tuple[str, ...]
    reason: str
    blamed: tuple[str, ...]
    """Those of them that did not go with their node: the model itself may be the cause."""


def pause(failures: int) -> float:
    """Seconds to wait after the latest of so many recent failures."""
    return float(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (failures - 1)))


def tend(
    state: ModelState, plan: Plan, live: Mapping[str, Lives], term: int, now: float, elsewhere: Elsewhere
) -> Decision | Fallen:
    """What has to be done about the replicas of a model that is online."""
    draft = Draft(plan, term, now, live, elsewhere)
    health = {name: _health(plan, name, state.run, live) for name in plan.replicas}
    for executor in plan.records:
        _hear(draft, executor, state.run)
    for executor in plan.records:
        _bury(draft, executor, health, state.run)
    fallen = [
        executor
        for executor in plan.records
        if not _succeeded(draft, executor, health, state.run) and not shifting.bereave(draft, executor)
    ]
    if fallen:
        return _fallen(plan, fallen, state.run, live)
    unwell = {executor for executor, record in draft.records.items() if health.get(record.primary) is not Health.WELL}
    later = list(upgrading.advance(draft, state, unwell))
    if draft.upgrade is None:
        moving.advance(draft, state.moves, state.run, unwell)
    else:
        moving.give_up(draft, state.moves, "the model is being updated")
    later += shifting.advance(draft, state, unwell)
    later += _protect(draft, state.moves)
    if draft.changed:
        return WritePlan(draft.finished(), told=told_of(draft, plan.records), settled=tuple(draft.settled))
    stale = tuple(
        name for name, r in state.run.items() if name not in plan.replicas and not lives(r.node, r.incarnation, live)
    )
    if stale:
        return Sweep(stale)
    return Later(min(later)) if later else Nothing()


def _health(plan: Plan, name: str, run: Mapping[str, RunEntry], live: Mapping[str, Lives]) -> Health:
    seat, entry = plan.replicas[name], present(plan, run, name)
    if not lives(seat.node, seat.incarnation, live):
        return Health.GONE
    if entry is None:
        return Health.STARTING
    if entry.state in GONE:
        return Health.GONE
    return Health.SILENT if entry.state == SILENT else Health.WELL


def _hear(draft: Draft, executor: str, run: Mapping[str, RunEntry]) -> None:
    """Apply what was reported. A report about an older record says nothing: it will come again if it is still true."""
    model = draft.plan.model
    record = draft.records[executor]
    for name in (record.primary, *record.standbys):
        for report in () if name not in run else run[name].reports:
            match report:
                case Complete() if name == record.primary:
                    if draft.protect(executor, report.standby, report.epoch):
                        where = draft.node(report.standby)
                        text = f"executor {executor} of {model} is protected by its standby on node {where}"
                        draft.say("standby.complete", text)
                case Diverged() if report.standby == name and report.epoch == draft.records[executor].epoch:
                    if draft.unprotect(executor, name):
                        text = f"the standby of {executor} of {model} on node {draft.node(name)} has computed something"
                        text += f" else than its primary before log position {report.position}; it begins anew"
                        draft.say("standby.diverged", text, "error")


def _bury(draft: Draft, executor: str, health: Mapping[str, Health], run: Mapping[str, RunEntry]) -> None:
    """Remove standbys that are gone. A silent one is kept while it may have to take over."""
    record = draft.records[executor]
    primary = health[record.primary]
    for name in sorted(record.standbys):
        how = health[name]
        if how is Health.GONE or (how is Health.SILENT and primary in (Health.WELL, Health.STARTING)):
            where = draft.node(name)
            what, why = "the standby", _reason(name, where, run, how)
            if name in record.foreign:
                draft.lost_shadow(name, why)
                what = "the new version"
            draft.lose_standby(executor, name)
            draft.say(
                "standby.lost", f"{what} of {executor} of {draft.plan.model} on node {where} is lost: {why}", "warning"
            )


def _succeeded(draft: Draft, executor: str, health: Mapping[str, Health], run: Mapping[str, RunEntry]) -> bool:
    """Whether the executor has a primary, if need be a new one."""
    record = draft.records[executor]
    how = health[record.primary]
    if _refused(run.get(record.primary), record.primary, record.since):
        return False
    if how is Health.SILENT and len(draft.silences) >= SILENCES_ALLOWED:
        return True
    if how not in (Health.GONE, Health.SILENT):
        return True
    fit = [name for name in sorted(record.protecting) if health[name] is Health.WELL]
    if not fit:  # a silent one may speak again; its agent kills it if it does not
        return how is Health.SILENT or any(health[name] is Health.SILENT for name in record.protecting)
    chosen = min(fit, key=lambda name: record.standbys[name] is not Mode.ACTIVE)
    here, there = draft.node(record.primary), draft.node(chosen)
    if how is Health.SILENT:
        draft.silences.append(draft.now)
    draft.promote(executor, chosen)
    text = f"executor {executor} of {draft.plan.model} on node {here} is lost: "
    text += f"{_reason(record.primary, here, run, how)}; its standby on node {there} takes over"
    draft.say("primary.lost", text, "warning")
    return True


def _refused(entry: RunEntry | None, primary: str, since: tuple[int, int]) -> bool:
    """Whether the primary has said that it cannot take over."""
    reports = () if entry is None else entry.reports
    return any(isinstance(r, Refused) and r.replica == primary and r.epoch >= since for r in reports)


def _reason(name: str, node: str, run: Mapping[str, RunEntry], how: Health) -> str:
    entry = run.get(name)
    if how is Health.SILENT:
        return "its worker says nothing"
    if entry is not None and entry.state in GONE:
        return entry.error or entry.state
    return f"node {node} is gone"


def _fallen(plan: Plan, executors: list[str], run: Mapping[str, RunEntry], live: Mapping[str, Lives]) -> Fallen:
    def orphaned(executor: str) -> bool:
        seat = plan.executors[executor]
        return not lives(seat.node, seat.incarnation, live)

    blamed = tuple(executor for executor in executors if not orphaned(executor))
    executor = (blamed or tuple(executors))[0]
    primary = plan.records[executor].primary
    entry = run.get(primary)
    refusals = [r.reason for r in (entry.reports if entry is not None else ()) if isinstance(r, Refused)]
    reason = refusals[-1] if refusals else _reason(primary, plan.replicas[primary].node, run, Health.GONE)
    return Fallen(tuple(sorted(executors)), reason, blamed)


def _protect(draft: Draft, moves: Mapping[str, Move]) -> Iterator[float]:
    """A standby on another node for every executor that has none. What a move has left over goes. Yields when to look
    again."""
    model = draft.plan.model
    for executor, record in sorted(draft.records.items()):
        own = record.standbys.keys() - record.foreign
        if not own:
            lost = draft.setbacks.get(executor, [])
            at = lost[-1][0] + pause(len(lost)) if lost else draft.now
            if draft.now < at:
                yield at
            elif draft.urgent:
                continue  # a plan of its own, so that nobody waits for the new one to be loaded
            elif name := add_standby(draft, executor):
                draft.say("standby.added", f"executor {executor} of {model} gets a standby on node {draft.node(name)}")
        elif len(own) > 1 and (executor not in moves or executor in draft.settled):
            kept = min(sorted(own), key=lambda name: name not in record.protecting)
            for name in sorted(own - {kept}):
                draft.drop_standby(executor, name)
