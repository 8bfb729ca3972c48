"""Desired against observed, as a pure function: what an agent does about the models on its node.

A plan says which executors run here and in which incarnation (epoch). The way up, for each model:

    Load -> all executors of the plan are loaded, on all nodes -> Connect -> all nodes have connected -> Start

so no source reads before every executor can be reached. An executor is loaded at most once per epoch: when it is lost,
the agent says so, and the leader plans it anew with a higher one. `converge` is asked again after everything that
happens; what it has asked for is part of the next question (`Host.phase`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penstock.cluster import seating
from penstock.cluster.hosting import (
    Action,
    ConnectModel,
    Forget,
    Here,
    Host,
    LoadModel,
    Phase,
    ReportConnected,
    StartModel,
    StopModel,
)
from penstock.cluster.plan import Assigned, ModelState, Plan, reachable
from penstock.worker.messages import Epoch


def converge(here: Here, models: Mapping[str, ModelState]) -> list[Action]:
    """What to do now."""
    actions: list[Action] = []
    taken: set[int] = set()
    for name in sorted({*models, *(host.model for host in here.hosts)}):
        actions += _model(here, name, models.get(name), taken)
    return actions


def _model(here: Here, name: str, state: ModelState | None, taken: set[int]) -> list[Action]:
    plan = state.plan if state is not None else None
    actions: list[Action]
    mine: dict[str, Assigned] = {}
    if plan is not None:
        mine = {
            executor: assigned
            for executor, assigned in plan.seats.items()
            if (assigned.node, assigned.incarnation) == (here.node, here.incarnation)
        }
    hosts = [host for host in here.hosts if host.model == name]
    covered = {executor for host in hosts for executor in host.executors}
    missing = {e: a for e, a in mine.items() if e not in covered}
    if plan is not None and state is not None and plan.replicated:
        actions = seating.unload(plan, mine, hosts) + _forget(here, name, state, mine, hosts)
        return actions + list(_loads(here, plan, missing, taken)) + seating.connect(here, plan, state, mine, hosts)
    wrong = [host for host in hosts if host.phase is Phase.STOPPING or not _wanted(host, mine)]
    actions = [StopModel(h.worker, name) for h in wrong if h.phase is not Phase.STOPPING]
    actions += _forget(here, name, state, mine, hosts)
    if wrong or plan is None or state is None:
        return actions
    loads = _loads(here, plan, missing, taken)
    if loads:
        return actions + list(loads)
    return actions + (_connect(here, plan, state, hosts, covered >= mine.keys()) if mine else [])


def _wanted(host: Host, mine: Mapping[str, Assigned]) -> bool:
    return all(executor in mine and mine[executor].epoch == host.epoch for executor in host.executors)


def _forget(
    here: Here, name: str, state: ModelState | None, mine: Mapping[str, Assigned], hosts: Sequence[Host]
) -> list[Action]:
    if state is None:
        return []
    held = {executor for host in hosts for executor in host.executors}
    gone = tuple(
        sorted(
            executor
            for executor, report in state.run.items()
            if report.node == here.node and executor not in mine and executor not in held
        )
    )
    return [Forget(name, gone)] if gone else []


def _loads(here: Here, plan: Plan, missing: Mapping[str, Assigned], taken: set[int]) -> list[LoadModel]:
    """One `Load` per epoch and version. A worker holds a model once, so a second load needs a second worker."""
    by_epoch: dict[tuple[Epoch, bool], list[str]] = {}
    for executor in sorted(missing):
        epoch = missing[executor].epoch
        if (plan.model, executor, epoch) not in here.attempted:
            by_epoch.setdefault((epoch, plan.upgraded(missing[executor])), []).append(executor)
    busy = {host.worker for host in here.hosts if host.model == plan.model}
    busy |= {host.worker for host in here.hosts if host.phase is Phase.STOPPING}
    loads = []
    for epoch, upgraded in sorted(by_epoch):
        home = here.homes.get((plan.model, upgraded))
        if home is None:
            continue  # its package or environment is being brought back
        free = (w for w, of in here.pools.items() if of == home and w not in busy and w not in taken)
        worker = min(free, default=None)
        if worker is not None:
            busy.add(worker)
        loads.append(LoadModel(plan.model, epoch, tuple(by_epoch[epoch, upgraded]), worker))
    return loads


def _connect(here: Here, plan: Plan, state: ModelState, hosts: Sequence[Host], complete: bool) -> list[Action]:
    if not reachable(plan, state.run) or not complete:
        return []
    actions: list[Action] = [
        ConnectModel(host.worker, plan.model, plan.revision)
        for host in hosts
        if host.phase in (Phase.LOADED, Phase.STARTED) and host.connected < plan.revision
    ]
    if actions or any(host.phase is Phase.LOADING for host in hosts):
        return actions
    if state.connected.get(here.node, 0) < plan.revision:
        actions.append(ReportConnected(plan.model, plan.revision))
    if all(state.connected.get(node, 0) >= plan.revision for node in plan.nodes()):
        actions += [StartModel(host.worker, plan.model) for host in hosts if host.phase is Phase.LOADED]
    return actions
