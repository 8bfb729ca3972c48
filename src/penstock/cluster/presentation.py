"""What Redis says and what workers count, put together for people: the views of `penstock.cluster.service`; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from penstock.cluster import shifting, upgrading
from penstock.cluster.metrics import NodeMetrics
from penstock.cluster.plan import GONE, ModelState, Plan, present, status
from penstock.cluster.replica_views import UpdateView
from penstock.cluster.service import ChannelView, ExecutorView, ModelView, NodeView, PlacementView, ReplicaView
from penstock.cluster.view import Member, View
from penstock.exchange.replica.assignment import Assignment
from penstock.model.manifest import Manifest


def node_views(view: View, metrics: Mapping[str, NodeMetrics]) -> list[NodeView]:
    """All members by name."""
    placed = Counter(node for node in view.placed().values())
    return [_node(view, m, placed[m.id], metrics.get(m.id)) for _, m in sorted(view.members.items())]


def _node(view: View, member: Member, executors: int, metrics: NodeMetrics | None) -> NodeView:
    return NodeView(
        id=member.id,
        address=member.lease.get("address", ""),
        incarnation=member.incarnation,
        live=member.live,
        leader=member.id == view.leader,
        role=member.lease.get("role", ""),
        host=member.lease.get("host", ""),
        pid=member.number("pid"),
        cpus=member.number("cpus"),
        memory=member.number("memory"),
        slots=member.number("slots"),
        executors=executors,
        workers=0 if metrics is None else metrics.workers,
        cpu=0.0 if metrics is None else metrics.cpu,
        rss=0 if metrics is None else metrics.rss,
        refused=0 if metrics is None else metrics.refused,
        applied=member.number("applied"),
        version=member.lease.get("version", ""),
    )


def executor_views(state: ModelState, measured: Mapping[str, ExecutorView]) -> list[ExecutorView]:
    """The executors of the plan, with their measurements."""
    if state.plan is None:
        return []
    topology, owned = state.entry.topology, shifting.key_groups(state.plan)
    result = []
    for name, assigned in sorted(state.plan.executors.items(), key=lambda item: _order(item[0])):
        seat = state.plan.seat(name)
        report = present(state.plan, state.run, seat)
        base = measured.get(seat) or ExecutorView(id=name)
        move = state.moves.get(name)
        result.append(
            msgspec.structs.replace(
                base,
                steps=() if topology is None else topology.stages[_order(name)[0]].steps,
                node=assigned.node,
                pid=report.pid if report is not None else 0,
                epoch=f"{assigned.epoch.term}.{assigned.epoch.counter}",
                state=_state(report.state) if report is not None else "starting",
                restarts=assigned.restarts,
                degraded=state.plan.replicated and state.plan.records[name].degraded,
                replicas=_replicas(state, state.plan, name, measured),
                moving_to="" if move is None else move.to,
                key_groups=owned.get(name, 0),
            )
        )
    return result


def _replicas(state: ModelState, plan: Plan, executor: str, measured: Mapping[str, ExecutorView]) -> list[ReplicaView]:
    """The primary first."""
    record = plan.records.get(executor)
    views = []
    for name in () if record is None else (record.primary, *sorted(record.standbys)):
        assert record is not None
        report, known = present(plan, state.run, name), measured.get(name)
        gone = report is None or report.state in GONE
        views.append(
            ReplicaView(
                name=name,
                role=_role(record, name),
                node=plan.replicas[name].node,
                pid=0 if report is None or gone else report.pid,
                state="starting" if report is None else _state(report.state),
                protects=name in record.protecting,
                behind=0 if known is None else known.behind,
                kept_bytes=0 if known is None else known.kept_bytes,
                cpu=0.0 if known is None else known.cpu,
                pause=0.0 if report is None else report.pause,
            )
        )
    return views


def _role(record: Assignment, name: str) -> str:
    if name == record.primary:
        return "primary"
    return "shadow" if name in record.foreign else record.standbys[name].value


def update_view(state: ModelState) -> UpdateView | None:
    """The live update of a model, if there is something to say of it."""
    plan, entry = state.plan, state.entry
    upgrade = None if plan is None else plan.upgrade
    if plan is None or upgrade is None:
        if upgrading.under_way(state):
            return UpdateView(version=entry.version, generation=entry.revision, phase="starting")
        failed = None if plan is None else plan.failed_upgrade
        return None if failed is None else UpdateView(generation=failed.revision, phase="failed", error=failed.error)
    phases = {"settling": upgrade.proved, "trial": upgrade.done, "handing over": upgrade.ordered}
    return UpdateView(
        version=upgrade.version,
        generation=upgrade.revision,
        phase=next((phase for phase, there in phases.items() if there), "shadow" if upgrade.shadowed else "starting"),
        begun=upgrade.begun,
        executors=sum(plan.upgraded(plan.replicas[record.primary]) for record in plan.records.values()),
    )


def _state(reported: str) -> str:
    return {"loaded": "starting", "lost": "starting"}.get(reported, reported)


def _order(name: str) -> tuple[int, int]:
    stage, _, index = name.partition(".")
    return int(stage), int(index)


def model_view(state: ModelState, metrics: Iterable[NodeMetrics], manifest: Manifest | None = None) -> ModelView:
    """One model with what is known of it. `manifest`: of its package, if this node has it."""
    entry, plan, topology = state.entry, state.plan, state.entry.topology
    parts = list(metrics)
    executors = executor_views(state, _measured(entry.name, parts))
    stages, edges = ((), ()) if topology is None else (topology.stages, topology.edges)
    sources = [e for e in executors if topology is None or stages[_order(e.id)[0]].has_source]
    feeding = {edge.source_stage for edge in edges}
    last = [e for e in executors if _order(e.id)[0] not in feeding]
    counters: Counter[str] = Counter()
    for executor in executors:
        counters.update(executor.counters)
    latencies = [e.latency for e in executors if e.latency]
    return ModelView(
        name=entry.name,
        version=entry.version,
        digest=entry.digest,
        desired=entry.desired,
        status=status(state),
        generation=entry.revision or entry.generation,
        config=entry.config,
        executors_per_stage=entry.executors,
        recovery=entry.recovery,
        schema={} if manifest is None else {name: msgspec.to_builtins(s) for name, s in manifest.config.items()},
        requires=[] if manifest is None else list(manifest.requires),
        operation=entry.lock,
        user=entry.user,
        topology=topology,
        epoch="" if plan is None else str(plan.revision),
        split="" if plan is None else shifting.shown(plan),
        error=entry.error,
        restarts=0 if plan is None else sum(a.restarts for a in plan.executors.values()),
        lost=lost(state, parts),
        promotions=0 if plan is None else plan.promotions,
        restores=0 if plan is None else plan.restores,
        update=update_view(state),
        keys_lost=0 if plan is None else plan.keys_lost,
        rate_in=sum(e.rate_in for e in sources),
        rate_out=sum(e.rate_out for e in last),
        records_in=sum(e.records_in for e in sources),
        records_out=sum(e.records_out for e in last),
        latency=[max(column) for column in zip(*latencies, strict=True)] if latencies else None,
        checkpoint=state.durable if entry.desired == "online" else None,
        counters=dict(counters),
        executors=executors,
        changed=entry.changed,
    )


def _measured(model: str, parts: Iterable[NodeMetrics]) -> dict[str, ExecutorView]:
    """What executors, or their replicas, were measured to do."""
    views = (e for part in parts for of in (part.executors, part.standbys) for e in of.get(model, ()))
    return {view.replica or view.id: view for view in views}


def lost(state: ModelState, metrics: Iterable[NodeMetrics]) -> int:
    """Records known to be lost: what nodes measure now, and what they reported before they went."""
    counts = dict(state.lost)
    for part in metrics:
        counts[part.node] = max(counts.get(part.node, 0), part.lost.get(state.entry.name, 0))
    return sum(counts.values())


def channel_views(state: ModelState, metrics: Iterable[NodeMetrics]) -> list[ChannelView]:
    """The traffic matrix of a model. With replicas it is that of the primaries."""
    replicated = state.plan is not None and state.plan.replicated
    nodes = {} if state.plan is None else {name: a.node for name, a in state.plan.executors.items()}
    return sorted(
        (
            msgspec.structs.replace(c, remote=nodes.get(c.producer) != nodes.get(c.consumer))
            for part in metrics
            for c in part.channels.get(state.entry.name, ())
            if not replicated or nodes.get(c.producer) == part.node
        ),
        key=lambda c: (c.edge, _order(c.producer), _order(c.consumer)),
    )


def placement_view(state: ModelState, metrics: Iterable[NodeMetrics]) -> PlacementView:
    """Where the executors of a model are."""
    plan = state.plan
    channels = channel_views(state, metrics)
    total = sum(c.bytes for c in channels)
    assignment = (
        {} if plan is None else {name: plan.executors[name].node for name in sorted(plan.executors, key=_order)}
    )
    return PlacementView(
        model=state.entry.name,
        strategy="" if plan is None else plan.strategy,
        epoch="" if plan is None else str(plan.revision),
        assignment=assignment,
        load=dict(sorted(Counter(assignment.values()).items())),
        split="" if plan is None else shifting.shown(plan),
        key_groups={} if plan is None else shifting.key_groups(plan),
        cut=sum(c.bytes for c in channels if c.remote) / total if total else 0.0,
        channels=channels,
    )
