"""The messages to workers that a plan makes: what to load, and where everybody is; pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from penstock.cluster.plan import ModelState, Plan, RunEntry, Upgrade, executor_id, executor_of, present
from penstock.settings import RunSettings
from penstock.worker.messages import Connect, Epoch, Load, ReplicaLoad

_BEATS = 4
"""Reports of a worker in the time after which it counts as silent."""


def load(
    plan: Plan,
    places: Collection[str],
    epoch: Epoch,
    target: str,
    settings: RunSettings,
    silence: float,
    checkpoint_url: str | None = None,
) -> Load:
    """What a worker needs to load these places of a plan. Reports of workers with replicas double as heartbeat."""
    replicas, upgrade = {}, _upgrade(plan, places)
    if plan.replicated:
        migrates = upgrade is not None and upgrade.digest != plan.digest
        replicas = {
            executor_of(name): ReplicaLoad(name, record, plan.version if migrates and name in record.foreign else None)
            for name in places
            if (record := plan.records[executor_of(name)])
        }
        beat = min(settings.metrics_interval, silence / _BEATS)
        settings = msgspec.structs.replace(settings, metrics_interval=beat)
    return Load(
        model=plan.model,
        target=target,
        number=plan.number,
        epoch=epoch,
        executors=[executor_id(executor_of(place)) for place in places],
        counts=plan.counts,
        config=plan.config if upgrade is None else upgrade.config,
        settings=settings,
        checkpoint_url=checkpoint_url,
        restore=plan.restore,
        replicas=replicas,
        replication=plan.replication,
        routings=plan.routings,
        members=plan.members(),
    )


def packages(plan: Plan) -> list[tuple[bool, str]]:
    """The packages that a plan needs: its own, and that of the version which is taking over."""
    return [(False, plan.digest), *([(True, plan.upgrade.digest)] if plan.upgrade is not None else [])]


def package(plan: Plan, places: Collection[str]) -> str:
    """The package of places that are loaded together."""
    upgrade = _upgrade(plan, places)
    return plan.digest if upgrade is None else upgrade.digest


def _upgrade(plan: Plan, places: Collection[str]) -> Upgrade | None:
    return plan.upgrade if any(plan.upgraded(plan.seats[place]) for place in places) else None


def connect(state: ModelState) -> Connect:
    """Where everybody of a model is; of replicas, those that are known so far. All executors have to be known."""
    plan = state.plan
    assert plan is not None
    unborn = {executor for executor in plan.unborn() if present(plan, state.run, plan.seat(executor)) is None}
    at = {executor: state.run[plan.seat(executor)] for executor in plan.executors.keys() - unborn}
    replicas: Mapping[str, RunEntry] = {}
    epochs = {executor: entry.epoch for executor, entry in at.items()}
    if plan.replicated:
        known = {name: present(plan, state.run, name) for name in plan.replicas}
        replicas = {name: entry for name, entry in known.items() if entry is not None and entry.endpoint}
        epochs = {executor: Epoch(*record.since) for executor, record in plan.records.items()}
    everybody = (*at.values(), *replicas.values())
    return Connect(
        model=plan.model,
        endpoints={executor: entry.endpoint for executor, entry in at.items()},
        epochs=epochs,
        server_keys={entry.endpoint: entry.server_key for entry in everybody if entry.server_key},
        records=plan.records,
        replicas={name: entry.endpoint for name, entry in replicas.items()},
        checkpoint=state.checkpoint,
        routings=plan.routings,
        members=plan.members(),
    )
