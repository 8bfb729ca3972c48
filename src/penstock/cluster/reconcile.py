"""Desired against observed, as pure functions: what the leader does about a model.

`decide` is given everything known about one model and returns one decision; the leader carries it out by a script that
checks its term, and asks again when it next looks. Nothing is remembered between two calls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import msgspec

from penstock.cluster import shifting, upgrading
from penstock.cluster.decisions import Decision, DropPlan, Elsewhere, GiveUp, Later, Nothing, Sweep, Told, WritePlan
from penstock.cluster.plan import (
    GONE,
    NONE,
    SILENT,
    Assigned,
    Lives,
    ModelState,
    Plan,
    RunEntry,
    executor_id,
    executor_of,
)
from penstock.cluster.replicas import Draft, degraded, lives, seated
from penstock.cluster.succession import Fallen, pause, tend
from penstock.errors import UsageError
from penstock.placement.plan import ExecutorKey, Placement, Problem, WorkerSlot, executor_keys, links, stage_counts
from penstock.placement.registry import DEFAULT, place
from penstock.worker.messages import Epoch

FAILURES_ALLOWED = 5
"""So many failures within `FAILURE_WINDOW` seconds are answered by a restart; one more, and the model has failed."""
FAILURE_WINDOW = 60.0
PERMANENT = frozenset({"StepError", "FlowError", "UsageError", "CodecError", "ImportError", "ModuleNotFoundError"})
"""Errors that a restart would only meet again."""


NUMBERS = 1 << 16
"""Frames have 16 bits for the number of a model."""


def decide(
    state: ModelState,
    live: Mapping[str, Lives],
    term: int,
    now: float,
    elsewhere: Elsewhere | None = None,
    taken: Collection[int] = (),
    initial: str = DEFAULT,
) -> Decision:
    """What the leader of `term` does about one model at `now` (Redis seconds). `taken`: numbers of other models.
    `initial`: the strategy that places a model before anything of it was measured."""
    decision = _decided(state, live, term, now, elsewhere or {}, taken, initial)
    if isinstance(decision, WritePlan):
        plan = decision.plan
        return dataclasses.replace(decision, plan=msgspec.structs.replace(plan, written=Epoch(term, plan.revision)))
    return decision


def _decided(
    state: ModelState,
    live: Mapping[str, Lives],
    term: int,
    now: float,
    elsewhere: Elsewhere,
    taken: Collection[int],
    initial: str,
) -> Decision:
    entry, plan = state.entry, state.plan
    if entry.desired == "offline" or entry.error:
        return DropPlan() if plan is not None else _sweep(state, live)
    if not live:
        return Nothing()
    if plan is None or plan.generation != entry.generation:
        if plan is not None:
            return DropPlan()
        if any(lives(report.node, report.incarnation, live) for report in state.run.values()):
            return Nothing()  # what is left of an earlier plan is being stopped
        return _first_plan(state, live, term, now, elsewhere, taken, initial)
    if plan.replicated:
        return _tend(state, plan, live, term, now, elsewhere)
    return _repair(state, plan, live, term, now, elsewhere)


def _sweep(state: ModelState, live: Mapping[str, Lives]) -> Decision:
    stale = tuple(name for name, r in state.run.items() if not lives(r.node, r.incarnation, live))
    return Sweep(stale) if stale else Nothing()


def _first_plan(
    state: ModelState,
    live: Mapping[str, Lives],
    term: int,
    now: float,
    elsewhere: Elsewhere,
    taken: Collection[int],
    strategy: str,
) -> Decision:
    entry = state.entry
    if entry.topology is None:
        return Nothing()  # this node is about to get the package
    if len(taken) >= NUMBERS:
        return GiveUp(f"{len(taken):,} models are online: there is no number left for another one")
    try:
        counts = stage_counts(entry.topology, entry.executors)
    except UsageError as error:
        return GiveUp(str(error))
    keys = executor_keys(entry.name, counts)
    revision = entry.counter + 1
    where = _place(keys, {}, live, elsewhere, strategy, links(entry.name, entry.topology, counts))
    assigned = {
        f"{key.stage}.{key.index}": Assigned(node=node, incarnation=live[node].incarnation, epoch=Epoch(term, revision))
        for key, node in where.items()
    }
    plan = Plan(
        model=entry.name, number=_number(entry.generation, taken), generation=entry.generation, revision=revision,
        digest=entry.digest, config=entry.config, version=entry.version, counts=counts, executors=assigned,
        strategy=strategy,
    )  # fmt: skip
    if entry.recovery == NONE:
        return WritePlan(plan)
    plan = msgspec.structs.replace(plan, replication=entry.replication)
    plan, alone = seated(plan, entry.recovery, live, term, now, elsewhere)
    told = (_placed(plan), *([degraded(plan.model, alone)] if alone else []))
    return WritePlan(msgspec.structs.replace(plan, restore=state.checkpoint), told=told)


def _placed(plan: Plan) -> Told:
    where = f"model {plan.model} was placed on {', '.join(sorted(plan.nodes()))}"
    return Told("model.placed", f"{where}, with {plan.recovery} standbys")


def _number(generation: int, taken: Collection[int]) -> int:
    """A free one. Generations grow, so a number comes back late."""
    return next(n % NUMBERS for n in range(generation, generation + NUMBERS) if n % NUMBERS not in taken)


def _place(
    keys: tuple[ExecutorKey, ...],
    kept: Mapping[ExecutorKey, str],
    live: Mapping[str, Lives],
    elsewhere: Elsewhere,
    strategy: str = DEFAULT,
    joined: tuple[tuple[ExecutorKey, ExecutorKey], ...] = (),
) -> dict[ExecutorKey, str]:
    """Nodes for `keys`; `kept` ones stay, and what runs elsewhere counts as load. A strategy that finds no placement,
    or fails, does not keep a model from running: then it is placed evenly."""
    fixed = {key: node for key, node in {**elsewhere, **kept}.items() if node in live}
    problem = Problem(
        executors=tuple(sorted({*keys, *fixed})),
        workers=tuple(WorkerSlot(node, 0) for node in sorted(live)),
        current=Placement({key: WorkerSlot(node, 0) for key, node in fixed.items()}),
        links=joined,
        pinned=frozenset(fixed),
    )
    try:
        placement = place(strategy, problem)
    except UsageError:
        placement = place(DEFAULT, problem)
    return {key: placement.workers[key].node for key in keys}


def _tend(
    state: ModelState, plan: Plan, live: Mapping[str, Lives], term: int, now: float, elsewhere: Elsewhere
) -> Decision:
    """The replicas; when these cannot help, everything from the last durable checkpoint."""
    if upgrading.accepted(state, plan):
        return upgrading.finished(plan)
    if broken := upgrading.failure(state, plan, now):
        return _take_back(state, plan, broken, live, term, now, elsewhere)
    hopeless = next((error for name in plan.replicas if (error := _replica_error(state, plan, name))), "")
    if hopeless:
        return GiveUp(hopeless)
    decision = tend(state, plan, live, term, now, elsewhere)
    if not isinstance(decision, Fallen):
        return decision
    if upgrading.blamed(plan, decision.blamed):  # whatever killed it: the version before is the safe one
        return _take_back(state, plan, decision.reason, live, term, now, elsewhere)
    return _restore(state, plan, decision, live, term, now, elsewhere)


def _take_back(
    state: ModelState, plan: Plan, why: str, live: Mapping[str, Lives], term: int, now: float, elsewhere: Elsewhere
) -> Decision:
    """The version that was taking over has failed: the one before goes on."""
    if not upgrading.switched(plan):
        draft = Draft(plan, term, now, live, elsewhere)
        upgrading.give_up(draft, why)
        return WritePlan(draft.finished(), told=tuple(draft.told))
    fallen = Fallen(tuple(plan.executors), f"the version that had just taken over failed: {why}", ())
    decision = _restore(state, upgrading.reverted(plan, why), fallen, live, term, now, elsewhere)
    if isinstance(decision, WritePlan):
        told = (upgrading.told_reverted(plan, why), *decision.told)
        return dataclasses.replace(decision, told=told)
    return decision


def _replica_error(state: ModelState, plan: Plan, name: str) -> str:
    """An error that a promotion or a restart would only meet again. A standby that cannot be loaded is replaced."""
    report, assigned = state.run.get(name), plan.replicas[name]
    if report is None or report.epoch != assigned.epoch or report.state not in GONE:
        return ""
    standby = executor_of(name) in plan.unborn() or all(r.primary != name for r in plan.records.values())
    if standby and report.loading:
        return ""
    return report.error if _hopeless(report, assigned) else ""


def _restore(
    state: ModelState,
    plan: Plan,
    fallen: Fallen,
    live: Mapping[str, Lives],
    term: int,
    now: float,
    elsewhere: Elsewhere,
) -> Decision:
    """All executors begin anew with what the last durable checkpoint holds: a part alone would not fit the others."""
    which = ", ".join(fallen.executors)
    recent = [at for at in plan.failures if at > now - FAILURE_WINDOW]
    if _begun(state, plan) and state.checkpoint is None:
        return GiveUp(
            f"executors {which} have lost their state ({fallen.reason}): no standby could take over, and no durable "
            "checkpoint was complete from which everything could be restored. Take the model offline and bring it "
            "online again: it starts empty then"
        )
    if state.durable is not None and state.durable.of != plan.of:
        return GiveUp(
            f"executors {which} have lost their state ({fallen.reason}), and the last durable checkpoint is of another "
            "version of the model. Take it offline and bring it online again: it starts empty then"
        )
    if fallen.blamed:
        verdict = _failed_again(recent, now, fallen.reason)
        if verdict is not None:
            return verdict
        recent.append(now)
    routings, births = shifting.restored(plan, term)
    keys = tuple(
        key
        for key in sorted(ExecutorKey(plan.model, one.stage, one.index) for one in map(executor_id, plan.executors))
        if key.stage not in routings or key.index in routings[key.stage].executors
    )
    where = _place(keys, {}, live, elsewhere)
    executors = {
        f"{key.stage}.{key.index}": Assigned(
            node=node, incarnation=live[node].incarnation, epoch=Epoch(term, plan.revision + 1),
            restarts=plan.executors[f"{key.stage}.{key.index}"].restarts + 1,
        )
        for key, node in where.items()
    }  # fmt: skip
    # An update that was under way begins anew, unless it is what failed.
    blank = msgspec.structs.replace(
        plan, upgrade=None, revision=plan.revision + 1, executors=executors, failures=recent, restore=state.checkpoint,
        restores=plan.restores + 1, routings=routings, births=births,
    )  # fmt: skip
    renewed, alone = seated(blank, plan.recovery, live, term, now, elsewhere)
    begins = "empty, as it had not begun" if state.checkpoint is None else f"from checkpoint {state.checkpoint}"
    text = f"executors {which} of {plan.model} have lost their state, all begin again {begins}: {fallen.reason}"
    told = [Told("model.restored", text, "warning")]
    return WritePlan(renewed, told=(*told, *([degraded(plan.model, alone)] if alone else [])))


def _begun(state: ModelState, plan: Plan) -> bool:
    """Whether records may have been processed: the gates open when all nodes have connected."""
    ran = {"running", "finished", SILENT}
    return plan.nodes() <= state.connected.keys() or any(report.state in ran for report in state.run.values())


def _failed_again(recent: list[float], now: float, error: str) -> GiveUp | Later | None:
    """What one more failure means; `None`: start again now."""
    if len(recent) >= FAILURES_ALLOWED:
        return GiveUp(
            f"its executors failed {len(recent) + 1} times within {FAILURE_WINDOW:.0f} s; the last time: {error}"
        )
    if recent and now < (at := recent[-1] + pause(len(recent))):
        return Later(at)
    return None


def _repair(
    state: ModelState, plan: Plan, live: Mapping[str, Lives], term: int, now: float, elsewhere: Elsewhere
) -> Decision:
    orphaned = [name for name, a in plan.executors.items() if not lives(a.node, a.incarnation, live)]
    failed = {
        name: state.run[name]
        for name, a in plan.executors.items()
        if name not in orphaned and name in state.run
        if state.run[name].epoch == a.epoch and state.run[name].state in GONE
    }
    hopeless = next((r for name, r in failed.items() if _hopeless(r, plan.executors[name])), None)
    if hopeless is not None:
        return GiveUp(hopeless.error)
    recent = [at for at in plan.failures if at > now - FAILURE_WINDOW]
    if failed:
        verdict = _failed_again(recent, now, next(iter(failed.values())).error)
        if isinstance(verdict, GiveUp) or (verdict is not None and not orphaned):
            return verdict
        if verdict is None:
            recent.append(now)
        else:
            failed = {}
    restart = (*orphaned, *failed)
    if not restart:
        return Nothing()
    reason = next(iter(failed.values())).error if failed else f"node {plan.executors[orphaned[0]].node} is gone"
    return WritePlan(_restarted(plan, restart, recent, live, term, elsewhere), tuple(sorted(restart)), reason)


def _hopeless(report: RunEntry, assigned: Assigned) -> bool:
    """Whether a restart would only meet the same error: the author's, or one that kept it from ever being loaded."""
    return report.state == "failed" and (report.kind in PERMANENT or (report.loading and not assigned.restarts))


def _restarted(
    plan: Plan,
    restart: tuple[str, ...],
    failures: list[float],
    live: Mapping[str, Lives],
    term: int,
    elsewhere: Elsewhere,
) -> Plan:
    """The plan with `restart` placed anew, as later incarnations; nothing else moves."""
    revision = plan.revision + 1
    keys = executor_keys(plan.model, plan.counts)
    names = {f"{key.stage}.{key.index}": key for key in keys}
    kept = {key: plan.executors[name].node for name, key in names.items() if name not in restart}
    where = _place(keys, kept, live, elsewhere)
    executors = dict(plan.executors)
    for name in restart:
        node = where[names[name]]
        executors[name] = Assigned(
            node=node,
            incarnation=live[node].incarnation,
            epoch=Epoch(term, revision),
            restarts=executors[name].restarts + 1,
        )
    return msgspec.structs.replace(plan, revision=revision, executors=executors, failures=failures)
