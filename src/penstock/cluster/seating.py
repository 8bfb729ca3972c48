"""`converge` for a model with replicas: its places come and go one by one while the others run.

- A replica that the plan has no more is released; when a worker has no other of the model, the model is stopped there.
- Workers are told of a new plan when everything in it is loaded, so that a new standby's endpoint is known to its
  primary from the beginning. But a plan that appoints or removes somebody is told at once (`Plan.at_once`): output
  waits for that word.
- A new load starts when all nodes have been told where it is. After a restore it also waits until nothing of the time
  before runs any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penstock.cluster.hosting import (
    Action,
    ConnectModel,
    HandOver,
    Here,
    Host,
    Phase,
    ReleaseReplicas,
    ReportConnected,
    StartModel,
    StopModel,
)
from penstock.cluster.plan import ALIVE, Assigned, ModelState, Plan, present, reachable

_UP = (Phase.LOADED, Phase.STARTED)


def unload(plan: Plan, mine: Mapping[str, Assigned], hosts: Sequence[Host]) -> list[Action]:
    """What has to go."""
    actions: list[Action] = []
    for host in hosts:
        unwanted = host.executors - _wanted(host, mine)
        if host.phase is Phase.STOPPING or not unwanted:
            continue
        if unwanted == host.executors:
            actions.append(StopModel(host.worker, plan.model))
        elif host.phase in _UP and (new := unwanted - host.releasing):
            actions.append(ReleaseReplicas(host.worker, plan.model, tuple(sorted(new))))
    return actions


def _wanted(host: Host, mine: Mapping[str, Assigned]) -> frozenset[str]:
    return frozenset(place for place in host.executors if place in mine and mine[place].epoch == host.epoch)


def connect(
    here: Here, plan: Plan, state: ModelState, mine: Mapping[str, Assigned], hosts: Sequence[Host]
) -> list[Action]:
    """Who has to be told what; which gates may open."""
    up = [host for host in hosts if host.phase in _UP and _wanted(host, mine)]
    everything = reachable(plan, state.run)
    actions: list[Action] = []
    for host in up:
        if everything and host.knows < plan.revision:
            actions.append(ConnectModel(host.worker, plan.model, plan.revision))
        elif host.phase is Phase.STARTED and host.connected < plan.at_once and _primaries_known(plan, state):
            actions.append(ConnectModel(host.worker, plan.model, plan.revision, complete=False))
    if not actions:
        actions += _handovers(plan, up)
    known = {place for host in up if host.knows >= plan.revision for place in host.executors}
    if not mine or not mine.keys() <= known:
        return actions
    if state.connected.get(here.node, 0) < plan.revision:
        actions.append(ReportConnected(plan.model, plan.revision))
    if all(state.connected.get(node, 0) >= plan.revision for node in plan.nodes()) and not _left(plan, state):
        actions += [StartModel(host.worker, plan.model) for host in up if host.phase is Phase.LOADED]
    return actions


def _primaries_known(plan: Plan, state: ModelState) -> bool:
    unborn = plan.unborn()
    return all(
        executor in unborn or ((entry := present(plan, state.run, record.primary)) is not None and entry.endpoint)
        for executor, record in plan.records.items()
    )


def _handovers(plan: Plan, hosts: Sequence[Host]) -> list[Action]:
    return [
        HandOver(host.worker, plan.model, executor, standby)
        for executor, standby in sorted(plan.handovers.items())
        for host in hosts
        if plan.records[executor].primary in host.executors and host.phase is Phase.STARTED
    ]


def _left(plan: Plan, state: ModelState) -> bool:
    """Whether something of before the restore still runs."""
    return bool(plan.restores) and any(
        report.state in ALIVE and name not in plan.seats for name, report in state.run.items()
    )
