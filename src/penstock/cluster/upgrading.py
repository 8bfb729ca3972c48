"""Live updates: another version of a model takes over while it is online; pure.

    shadows beside all primaries -> all compute for a while -> hand-overs, from the sinks up -> a trial -> a durable
    checkpoint of the new version: done

Each executor gets a second replica that runs the new version on the same input, its state through the author's
`migrate` and its output thrown away. One that fails there changes nothing. Then the primaries hand over, stage by
stage, the deepest first, so that whoever reads is never older than whoever writes. From the first hand-over to the end
of the trial no durable checkpoint is taken: if the new version fails in that time, the old one goes on from the last.
Every checkpoint says whose it is, so nothing is ever restored with another version than it was taken by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from penstock.cluster.decisions import Told, WritePlan
from penstock.cluster.moving import caught
from penstock.cluster.plan import GONE, FailedUpgrade, ModelEntry, ModelState, Plan, RunEntry, Upgrade, present
from penstock.cluster.replicas import Draft
from penstock.exchange.replica.assignment import Mode
from penstock.flow.graph import StageShape, Topology

SHADOW = 2.0
"""Seconds for which the new version computes beside the old one before it takes over."""
TRIAL = 3.0
"""Seconds after the last hand-over in which a failure brings the old version back."""
PATIENCE = 120.0
"""Seconds after which an update that has not come so far is given up."""
LOSSES_ALLOWED = 3
"""So often may shadows be lost while their nodes live: workers die, but one more loss must be what the version does."""
_PAUSE = 0.5
"""Seconds from the loss of a shadow to the next one."""


def wanted(entry: ModelEntry, plan: Plan) -> bool:
    """Whether the catalogue has another version than the plan, which has not failed yet."""
    failed = plan.failed_upgrade
    return differs(entry, plan) and (failed is None or failed.revision != entry.revision)


def differs(entry: ModelEntry, plan: Plan) -> bool:
    """Whether the catalogue has another version than the plan."""
    return entry.digest != plan.digest or entry.config != plan.config


def under_way(state: ModelState) -> bool:
    """Whether the model is being updated, or is about to be."""
    plan = state.plan
    return plan is not None and (plan.upgrade is not None or (plan.replicated and wanted(state.entry, plan)))


def difference(old: Topology, new: Topology) -> str:
    """Why executors of one flow cannot go on as those of another; empty when they can. Names of steps may differ, but
    for sources, whose offsets are known by name, and sinks, whose records may be durable and not shown yet."""
    if old.flow != new.flow:
        return f"its flow was named {old.flow}, that of the new version is named {new.flow}"
    if old.sources != new.sources:
        return f"its sources were {', '.join(old.sources)}, the new version has {', '.join(new.sources)}"
    if len(old.stages) != len(new.stages):
        return f"it had {len(old.stages)} stages, the new version has {len(new.stages)}"
    for before, after in zip(old.stages, new.stages, strict=True):
        if (before.has_source, before.keyed) != (after.has_source, after.keyed):
            return f"stage {before.id} was {' '.join(before.steps)}, the new version has {' '.join(after.steps)} there"
        if _sinks(before) != _sinks(after):
            those = [", ".join(_sinks(stage)) or "none" for stage in (before, after)]
            return f"the sinks of stage {before.id} were {those[0]}, the new version has {those[1]}"
    if old.dead_letters and not new.dead_letters:
        return "it had a sink for records that fail (on_error), the new version has none"
    shapes = [[(e.source_stage, e.target_stage, e.kind) for e in flow.edges] for flow in (old, new)]
    return "" if shapes[0] == shapes[1] else "records would go other ways between its executors"


def _sinks(stage: StageShape) -> list[str]:
    return [step for step, kind in zip(stage.steps, stage.kinds, strict=True) if kind == "sink"]


def accepted(state: ModelState, plan: Plan) -> bool:
    """Whether a durable checkpoint of the new version is complete: there is no way back any more, and none is
    needed."""
    upgrade, durable = plan.upgrade, state.durable
    return upgrade is not None and durable is not None and durable.of == upgrade.revision


def finished(plan: Plan) -> WritePlan:
    """The new version is the plan's."""
    upgrade = plan.upgrade
    assert upgrade is not None
    after = msgspec.structs.replace(
        plan, revision=plan.revision + 1, digest=upgrade.digest, config=upgrade.config, version=upgrade.version,
        of=upgrade.revision, upgrade=None,
    )  # fmt: skip
    text = f"{plan.model} runs version {upgrade.version or '?'}, its state kept"
    return WritePlan(after, told=(Told("model.updated_live", text),))


def failure(state: ModelState, plan: Plan, now: float) -> str:
    """Why the version that is taking over cannot; empty while there is no reason. A worker that dies is none."""
    upgrade = plan.upgrade
    if upgrade is None:
        return ""
    if not differs(state.entry, plan):
        return "it was called off"
    for name, seat in plan.replicas.items():
        report = present(plan, state.run, name)
        if plan.upgraded(seat) and report is not None and report.state == "failed":
            return report.error or "it failed"
    if len(upgrade.losses) > LOSSES_ALLOWED:
        return f"its workers were lost {len(upgrade.losses)} times, the last time: {upgrade.trouble}"
    if not upgrade.done and now > upgrade.begun + PATIENCE:
        return f"it has not taken over within {PATIENCE:.0f} s"
    return ""


def blamed(plan: Plan, executors: tuple[str, ...]) -> bool:
    """Whether one of these executors ran the version that is taking over."""
    return any(plan.upgraded(plan.replicas[plan.records[executor].primary]) for executor in executors)


def switched(plan: Plan) -> bool:
    """Whether some executor runs the new version already."""
    return blamed(plan, tuple(plan.records))


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


def told_reverted(plan: Plan, why: str) -> Told:
    """What that means for people."""
    upgrade = plan.upgrade
    assert upgrade is not None
    text = f"version {upgrade.version or '?'} of {plan.model} failed when it had taken over, the one before it goes on"
    return Told("model.update_failed", f"{text}: {why}", "error")


def advance(draft: Draft, state: ModelState, lost: set[str]) -> Iterator[float]:
    """One step of an update. `lost`: executors whose primary is not well: they are promoted first. Yields when to look
    again."""
    upgrade, entry, run = draft.upgrade, state.entry, state.run
    if upgrade is None:
        shifting = any(record.shift is not None for record in draft.routings.values())
        if not wanted(entry, draft.plan) or state.moves or draft.handovers or shifting:
            return  # moves and splits come to their end first
        upgrade = draft.begin_upgrade(entry)
        draft.say(
            "model.updating", f"version {entry.version or '?'} of {entry.name} begins to compute beside the other"
        )
    pending = [executor for executor, record in draft.records.items() if not draft.is_new(record.primary)]
    if not pending:
        yield from _on_trial(draft, upgrade)
        return
    again_at = upgrade.losses[-1] + _PAUSE if upgrade.losses else 0.0
    for executor in pending:
        if executor not in lost and not draft.records[executor].foreign:
            if draft.now < again_at:
                yield again_at
            else:
                _add_shadow(draft, executor)
    if not upgrade.ordered and (all_run := all(_runs(draft, run, e) for e in pending)) != bool(upgrade.shadowed):
        draft.upgrade = msgspec.structs.replace(upgrade, shadowed=draft.now if all_run else 0.0)
        draft.touch()
    elif not upgrade.shadowed:
        pass
    elif draft.now < upgrade.shadowed + SHADOW:
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
    elif not upgrade.proved:
        draft.upgrade = msgspec.structs.replace(upgrade, proved=True)
        draft.touch()  # the next durable checkpoint ends it


def _stage(executor: str) -> int:
    return int(executor.partition(".")[0])
