"""Desired against observed, as pure functions: what the leader does about a model.

`decide` is given everything known about one model and returns one decision; the leader carries it out by a script that
checks its term, and asks again when it next looks. Nothing is remembered between two calls.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from penstock.cluster.plan import GONE, Assigned, Lives, ModelEntry, ModelState, Plan, RunEntry
from penstock.errors import UsageError
from penstock.placement.plan import ExecutorKey, Placement, Problem, WorkerSlot, executor_keys, stage_counts
from penstock.placement.registry import DEFAULT, place
from penstock.worker.messages import Epoch

FAILURES_ALLOWED = 5
"""So many failures within `FAILURE_WINDOW` seconds are answered by a restart; one more, and the model has failed."""
FAILURE_WINDOW = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
PERMANENT = frozenset({"StepError", "FlowError", "UsageError", "CodecError", "ImportError", "ModuleNotFoundError"})
"""Errors that a restart would only meet again."""


@dataclass(frozen=True)
class Nothing:
    """All is as it should be, or has to wait for somebody else."""


@dataclass(frozen=True)
class Later:
    """Look again at `at` (Redis seconds)."""

    at: float


@dataclass(frozen=True)
class WritePlan:
    """Put this plan in force. `restarted` executors had failed or were lost with their node."""

    plan: Plan
    restarted: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class DropPlan:
    """Nothing of the model may run."""


@dataclass(frozen=True)
class GiveUp:
    """The model has failed; somebody has to look at it."""

    error: str


@dataclass(frozen=True)
class Sweep:
    """These reports are of nodes that are gone."""

    executors: tuple[str, ...]


Decision: TypeAlias = Nothing | Later | WritePlan | DropPlan | GiveUp | Sweep
Elsewhere: TypeAlias = Mapping[ExecutorKey, str]
"""The executors of all other models -> their node: they count when the load is spread."""

NUMBERS = 1 << 16
"""Frames have 16 bits for the number of a model."""


def decide(
    state: ModelState,
    live: Mapping[str, Lives],
    term: int,
    now: float,
    elsewhere: Elsewhere | None = None,
    taken: Collection[int] = (),
) -> Decision:
    """What the leader of `term` does about one model at `now` (Redis seconds). `taken`: numbers of other models."""
    entry, plan = state.entry, state.plan
    if entry.desired == "offline" or entry.error:
        return DropPlan() if plan is not None else _sweep(state, live)
    if not live:
        return Nothing()
    if plan is None or plan.generation != entry.generation:
        if plan is not None:
            return DropPlan()
        if any(_lives(report.node, report.incarnation, live) for report in state.run.values()):
            return Nothing()  # what is left of an earlier plan is being stopped
        return _first_plan(entry, live, term, elsewhere or {}, taken)
    return _repair(state, plan, live, term, now, elsewhere or {})


def _lives(node: str, incarnation: int, live: Mapping[str, Lives]) -> bool:
    return node in live and live[node].incarnation == incarnation


def _sweep(state: ModelState, live: Mapping[str, Lives]) -> Decision:
    stale = tuple(name for name, r in state.run.items() if not _lives(r.node, r.incarnation, live))
    return Sweep(stale) if stale else Nothing()


def _first_plan(
    entry: ModelEntry, live: Mapping[str, Lives], term: int, elsewhere: Elsewhere, taken: Collection[int]
) -> Decision:
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
    where = _place(keys, {}, live, elsewhere)
    assigned = {
        f"{key.stage}.{key.index}": Assigned(node=node, incarnation=live[node].incarnation, epoch=Epoch(term, revision))
        for key, node in where.items()
    }
    return WritePlan(
        Plan(
            model=entry.name, number=_number(entry.generation, taken), generation=entry.generation, revision=revision,
            digest=entry.digest, config=entry.config, counts=counts, executors=assigned, strategy=DEFAULT,
        )
    )  # fmt: skip


def _number(generation: int, taken: Collection[int]) -> int:
    """A free one. Generations grow, so a number comes back late."""
    return next(n % NUMBERS for n in range(generation, generation + NUMBERS) if n % NUMBERS not in taken)


def _place(
    keys: tuple[ExecutorKey, ...], kept: Mapping[ExecutorKey, str], live: Mapping[str, Lives], elsewhere: Elsewhere
) -> dict[ExecutorKey, str]:
    """Nodes for `keys`; `kept` ones stay, and what runs elsewhere counts as load."""
    fixed = {key: node for key, node in {**elsewhere, **kept}.items() if node in live}
    problem = Problem(
        executors=tuple(sorted({*keys, *fixed})),
        workers=tuple(WorkerSlot(node, 0) for node in sorted(live)),
        current=Placement({key: WorkerSlot(node, 0) for key, node in fixed.items()}),
    )
    placement = place(DEFAULT, problem)
    return {key: placement.workers[key].node for key in keys}


def _repair(
    state: ModelState, plan: Plan, live: Mapping[str, Lives], term: int, now: float, elsewhere: Elsewhere
) -> Decision:
    orphaned = [name for name, a in plan.executors.items() if not _lives(a.node, a.incarnation, live)]
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
        error = next(iter(failed.values())).error
        if len(recent) >= FAILURES_ALLOWED:
            return GiveUp(
                f"its executors failed {len(recent) + 1} times within {FAILURE_WINDOW:.0f} s; the last time: {error}"
            )
        if recent and now < (at := recent[-1] + pause(len(recent))):
            if not orphaned:
                return Later(at)
            failed = {}
        else:
            recent.append(now)
    restart = (*orphaned, *failed)
    if not restart:
        return Nothing()
    reason = next(iter(failed.values())).error if failed else f"node {plan.executors[orphaned[0]].node} is gone"
    return WritePlan(_restarted(plan, restart, recent, live, term, elsewhere), tuple(sorted(restart)), reason)


def _hopeless(report: RunEntry, assigned: Assigned) -> bool:
    """Whether a restart would only meet the same error: the author's, or one that kept it from ever being loaded."""
    return report.state == "failed" and (report.kind in PERMANENT or (report.loading and not assigned.restarts))


def pause(failures: int) -> float:
    """Seconds to wait after the latest of so many recent failures."""
    return float(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (failures - 1)))


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
