"""Live updates: another version of a model takes over while it is online; pure.

    shadows beside all primaries -> all compute for a while -> hand-overs, from the sinks up -> a trial -> done

Each executor gets a second replica that runs the new version on the same input, its state through the author's
`migrate` and its output thrown away. One that fails there changes nothing. Then the primaries hand over, stage by
stage, the deepest first, so that whoever reads is never older than whoever writes. From the first hand-over to the end
of the trial no durable checkpoint is taken: if the new version fails in that time, the old one goes on from the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from penstock.cluster.moving import caught
from penstock.cluster.plan import GONE, FailedUpgrade, ModelEntry, ModelState, Plan, RunEntry, Upgrade, present
from penstock.cluster.replicas import Draft
from penstock.exchange.replica.assignment import Mode
from penstock.flow.graph import Topology

SHADOW = 2.0
"""Seconds for which the new version computes beside the old one before it takes over."""
TRIAL = 3.0
"""Seconds after the last hand-over in which a failure brings the old version back."""
PATIENCE = 120.0
"""Seconds after which an update that has not come so far is given up."""


def wanted(entry: ModelEntry, plan: Plan) -> bool:
    """Whether the catalogue has another version than the plan, which has not failed yet."""
    failed = plan.failed_upgrade
    changed = entry.digest != plan.digest or entry.config != plan.config
    return changed and (failed is None or failed.revision != entry.revision)


def difference(old: Topology, new: Topology) -> str:
    """Why executors of one flow cannot go on as those of another; empty when they can. Names of steps may differ, but
    for sources: their offsets are known by name."""
    if old.sources != new.sources:
        return f"its sources were {', '.join(old.sources)}, the new version has {', '.join(new.sources)}"
    if len(old.stages) != len(new.stages):
        return f"it had {len(old.stages)} stages, the new version has {len(new.stages)}"
    for before, after in zip(old.stages, new.stages, strict=True):
        if (before.has_source, before.keyed) != (after.has_source, after.keyed):
            return f"stage {before.id} was {' '.join(before.steps)}, the new version has {' '.join(after.steps)} there"
    shapes = [[(e.source_stage, e.target_stage, e.kind) for e in flow.edges] for flow in (old, new)]
    return "" if shapes[0] == shapes[1] else "records would go other ways between its executors"


def failure(state: ModelState, plan: Plan, now: float) -> str:
    """Why the version that is taking over cannot; empty while there is no reason. A worker that dies is none."""
    upgrade = plan.upgrade
    if upgrade is None:
        return ""
    for name, seat in plan.replicas.items():
        report = present(plan, state.run, name)
        if plan.upgraded(seat) and report is not None and report.state == "failed":
            return report.error or "it failed"
    if not upgrade.done and now > upgrade.begun + PATIENCE:
        return f"it has not taken over within {PATIENCE:.0f} s"
    return ""


def switched(plan: Plan) -> bool:
    """Whether some executor runs the new version already."""
    return any(plan.upgraded(plan.replicas[record.primary]) for record in plan.records.values())


def give_up(draft: Draft, why: str) -> None:
    """Nobody has been handed over: the shadows go, the old version never stopped."""
    upgrade = draft.upgrade
    assert upgrade is not None
    for executor, record in list(draft.records.items()):
        for name in sorted(record.foreign):
            draft.drop_standby(executor, name)
    draft.end_upgrade(FailedUpgrade(upgrade.revision, why))
    text = f"{draft.plan.model} stays as it is: version {upgrade.version or '?'} failed beside it: {why}"
    draft.say("model.update_failed", text, "error")


def reverted(plan: Plan, why: str) -> Plan:
    """The plan as it is to be restored: without the version that failed after it had taken over."""
    upgrade = plan.upgrade
    assert upgrade is not None
    return msgspec.structs.replace(plan, upgrade=None, failed_upgrade=FailedUpgrade(upgrade.revision, why))


def advance(draft: Draft, state: ModelState, lost: set[str]) -> Iterator[float]:
    """One step of an update. `lost`: executors whose primary is not well: they are promoted first. Yields when to look
    again."""
    upgrade, entry, run = draft.upgrade, state.entry, state.run
    if upgrade is None:
        if not wanted(entry, draft.plan):
            return
        upgrade = draft.begin_upgrade(entry)
        draft.say(
            "model.updating", f"version {entry.version or '?'} of {entry.name} begins to compute beside the other"
        )
    pending = [executor for executor, record in draft.records.items() if not draft.is_new(record.primary)]
    if not pending:
        yield from _on_trial(draft, upgrade)
        return
    for executor in pending:
        if executor not in lost and not draft.records[executor].foreign:
            _add_shadow(draft, executor)
    if not upgrade.shadowed:
        if all(_runs(draft, run, executor) for executor in pending):
            draft.upgrade = msgspec.structs.replace(upgrade, shadowed=draft.now)
            draft.touch()
            yield draft.now + SHADOW
        return
    if draft.now < upgrade.shadowed + SHADOW:
        yield upgrade.shadowed + SHADOW
    elif state.checkpoint is None:
        yield draft.now + 0.5  # without one there is no way back
    else:
        _hand_over(draft, pending, run, lost)


def _add_shadow(draft: Draft, executor: str) -> None:
    node = draft.node(draft.records[executor].primary)
    if node in draft.live and draft.upgrade is not None:
        draft.add_standby(executor, node, Mode.ACTIVE, of=draft.upgrade.revision)


def _runs(draft: Draft, run: Mapping[str, RunEntry], executor: str) -> bool:
    foreign = draft.records[executor].foreign
    return bool(foreign) and all(
        (entry := run.get(name)) is not None
        and entry.epoch == draft.replicas[name].epoch
        and entry.state not in GONE
        and entry.state != "loaded"
        for name in foreign
    )


def _hand_over(draft: Draft, pending: list[str], run: Mapping[str, RunEntry], lost: set[str]) -> None:
    upgrade = draft.upgrade
    assert upgrade is not None
    deepest = max(_stage(executor) for executor in pending)
    for executor in pending:
        if _stage(executor) != deepest or executor in lost or not _runs(draft, run, executor):
            continue
        target = min(draft.records[executor].foreign)
        if draft.handovers.get(executor) != target:
            if not upgrade.ordered:
                upgrade = draft.upgrade = msgspec.structs.replace(upgrade, ordered=True)
            draft.order_handover(executor, target)
        elif caught(run.get(target), target, draft.records[executor].since) and draft.hand_over(executor, target):
            draft.say(
                "executor.updated", f"executor {executor} of {draft.plan.model} runs version {upgrade.version} now"
            )


def _on_trial(draft: Draft, upgrade: Upgrade) -> Iterator[float]:
    if not upgrade.done:
        draft.upgrade = msgspec.structs.replace(upgrade, done=draft.now)
        draft.touch()
        yield draft.now + TRIAL
    elif draft.now < upgrade.done + TRIAL:
        yield upgrade.done + TRIAL
    else:
        draft.finish_upgrade()
        draft.say("model.updated_live", f"{draft.plan.model} runs version {upgrade.version or '?'}, its state kept")


def _stage(executor: str) -> int:
    return int(executor.partition(".")[0])
