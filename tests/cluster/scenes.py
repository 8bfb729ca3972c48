"""A cluster on paper: members with leases, models with plans, and what their nodes would report."""

from __future__ import annotations

import msgspec

from penstock.cluster.metrics import NodeMetrics
from penstock.cluster.plan import Assigned, ModelEntry, ModelState, Plan, RunEntry
from penstock.cluster.service import ChannelView, ExecutorView
from penstock.cluster.view import Member, View
from penstock.exchange.replica.assignment import Mode, first, with_standby
from penstock.flow.graph import EdgeShape, StageShape, Topology
from penstock.worker.messages import Epoch

GIB = 2**30


def member(name, cpus=4, memory=8 * GIB, host=None, live=True):
    """A node with a machine of its own unless `host` says otherwise."""
    lease = {"incarnation": "1", "cpus": str(cpus), "memory": str(memory), "host": host or name, "address": "http://x"}
    return Member(id=name, incarnation=1, lease=lease if live else {})


def topology(stages=2):
    """A source, and keyed stages behind it, with a shuffle between two of them."""
    return Topology(
        flow="f",
        bounded=False,
        stages=tuple(StageShape(i, (f"s{i}",), ("count" if i else "source",), not i, bool(i)) for i in range(stages)),
        edges=tuple(EdgeShape(i, i, f"s{i}", 0, i + 1, f"s{i + 1}", 0, "shuffle") for i in range(stages - 1)),
    )


def model(name, homes, recovery="passive", state="running", stages=2, standbys=None, **changes):
    """A model online with its executors on these nodes: `{"0.0": "a", …}`, and `standbys` on others."""
    counts = {}
    for executor in homes:
        stage = int(executor.partition(".")[0])
        counts[stage] = counts.get(stage, 0) + 1
    epoch = Epoch(1, 1)
    values = {"name": name, "desired": "online", "generation": 1, "digest": "d", "topology": topology(stages)}
    entry = ModelEntry(recovery=recovery, **{**values, **changes})
    executors = {e: Assigned(node=node, incarnation=1, epoch=epoch) for e, node in homes.items()}
    plan = Plan(
        model=name, number=1, generation=1, revision=1, digest="d", config={}, counts=counts, executors=executors,
        recovery=recovery,
    )  # fmt: skip
    if recovery != "none":
        plan = _replicated(plan, standbys or {})
    run = {
        seat: RunEntry(epoch=epoch, node=place.node, incarnation=1, state=state, endpoint=f"ipc://{seat}")
        for seat, place in plan.seats.items()
    }
    return ModelState(entry=entry, plan=plan, run=run)


def _replicated(plan, standbys):
    """With a record per executor, and the standbys that there are."""
    replicas, records = {}, {}
    for executor, place in plan.executors.items():
        primary = f"{executor}@{place.node}/1.1"
        replicas[primary] = place
        records[executor] = first(primary)
        if executor in standbys:
            name = f"{executor}@{standbys[executor]}/1.1"
            replicas[name] = msgspec.structs.replace(place, node=standbys[executor])
            records[executor] = with_standby(records[executor], name, Mode(plan.recovery))
    return msgspec.structs.replace(plan, replicas=replicas, records=records)


def view(*states, members=("a", "b"), now=100.0):
    """The cluster, with members by name or as `member` makes them."""
    known = [each if isinstance(each, Member) else member(each) for each in members]
    return View(
        lineage=("l",), revision=1, now=now, leader=known[0].id if known else "", term=1,
        members={each.id: each for each in known}, models={state.entry.name: state for state in states},
    )  # fmt: skip


def reported(view, flows=None, cpu=None, memory=10**6, keys_bytes=0, queued=None, rss=10**8):
    """What the nodes would report: bytes per second `{(model, producer, consumer): …}`, cores `{(model, executor): …}`
    and bytes in flight."""
    parts = {name: NodeMetrics(node=name, rss=rss) for name in view.members}
    for name, state in view.models.items():
        for executor, assigned in state.plan.executors.items():
            own = parts.get(assigned.node)
            if own is not None:
                measured = ExecutorView(
                    id=executor, cpu=(cpu or {}).get((name, executor), 0.0), memory=memory, state_bytes=keys_bytes
                )
                own.executors.setdefault(name, []).append(measured)
    for (name, producer, consumer), volume in (flows or {}).items():
        node = view.models[name].plan.executors[producer].node
        if node in parts:
            channel = ChannelView(
                edge=0, producer=producer, consumer=consumer, rate=volume / 100, byte_rate=volume,
                bytes=int(volume * 10), queue_bytes=(queued or {}).get((name, producer, consumer), 0),
            )  # fmt: skip
            parts[node].channels.setdefault(name, []).append(channel)
    return parts
