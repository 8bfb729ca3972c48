"""What nodes report, as placement reads it: loads of executors, the traffic between them, resource vectors; pure.

A measurement counts only where the plan has the executor: what a replica that is gone had reported is left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from penstock.cluster.metrics import NodeMetrics
from penstock.cluster.plan import ModelState, executor_id, executor_of
from penstock.cluster.service import ChannelView, ExecutorView
from penstock.cluster.view import View
from penstock.placement.monitor import Pair
from penstock.placement.plan import ExecutorKey, ExecutorLoad, Traffic

BUFFER_PER_CHANNEL = 4 * 2**20
"""Bytes that one channel may have in flight (`RunSettings.credit_bytes`)."""


@dataclass(frozen=True, slots=True)
class Vector:
    """What an executor or a node uses (SYSTEMS Z3)."""

    cpu: float = 0.0
    """In cores."""
    memory: int = 0
    """In bytes."""
    network: float = 0.0
    """Bytes per second to and from other nodes, both counted."""
    buffer: int = 0
    """Bytes that wait to be taken in."""
    room: int = 0
    """Bytes that may wait."""


@dataclass
class Measurement:
    """One moment's measurements of all online models."""

    load: dict[ExecutorKey, ExecutorLoad] = field(default_factory=dict)
    traffic: dict[Pair, Traffic] = field(default_factory=dict)
    executors: dict[ExecutorKey, Vector] = field(default_factory=dict)
    nodes: dict[str, Vector] = field(default_factory=dict)
    """`memory` of a node is that of its agent and all its workers."""
    workers: dict[tuple[str, str], float] = field(default_factory=dict)
    """(node, group) -> cores that the executors of one group use on a node, standbys included."""
    standbys: dict[str, Vector] = field(default_factory=dict)
    """node -> what the standbys there use: they stay where they are, and are not to be had."""


def key_of(model: str, name: str) -> ExecutorKey:
    """The executor that a plan calls `name`."""
    parsed = executor_id(name)
    return ExecutorKey(model, parsed.stage, parsed.index)


def homes(view: View) -> dict[ExecutorKey, str]:
    """Every planned executor -> the node that it runs on."""
    return view.placed()


def group_of(model: str) -> str:
    """Models of one group share workers."""
    return model.partition("/")[0]


def executors_of(
    state: ModelState, home: Mapping[ExecutorKey, str], metrics: Mapping[str, NodeMetrics]
) -> Iterator[tuple[ExecutorKey, ExecutorView]]:
    """What was measured of the executors of a model, where the plan has their primaries."""
    name = state.entry.name
    for part in metrics.values():
        for view in part.executors.get(name, ()):
            key = key_of(name, view.id)
            if home.get(key) == part.node:
                yield key, view


def standbys_of(state: ModelState, metrics: Mapping[str, NodeMetrics]) -> Iterator[tuple[str, ExecutorView]]:
    """What was measured of the standbys of a model: node and measurement."""
    plan, name = state.plan, state.entry.name
    if plan is None or not plan.replicated:
        return
    primaries = {record.primary for record in plan.records.values()}
    places = {(seat.node, executor_of(replica)) for replica, seat in plan.replicas.items() if replica not in primaries}
    for part in metrics.values():
        for view in part.executors.get(name, ()):
            if (part.node, view.id) in places:
                yield part.node, view


def channels_of(
    state: ModelState, home: Mapping[ExecutorKey, str], metrics: Mapping[str, NodeMetrics]
) -> Iterator[tuple[ExecutorKey, ExecutorKey, ChannelView]]:
    """What was measured of the channels of a model, by the node of the producer."""
    name = state.entry.name
    for part in metrics.values():
        for channel in part.channels.get(name, ()):
            producer, consumer = key_of(name, channel.producer), key_of(name, channel.consumer)
            if home.get(producer) == part.node and consumer in home:
                yield producer, consumer, channel


def measured(view: View, metrics: Mapping[str, NodeMetrics]) -> Measurement:
    """Everything that is known at this moment."""
    home, found = homes(view), Measurement()
    network: defaultdict[ExecutorKey, float] = defaultdict(float)
    buffer: Counter[ExecutorKey] = Counter()
    room: Counter[ExecutorKey] = Counter()
    for state in view.models.values():
        for producer, consumer, channel in channels_of(state, home, metrics):
            known = found.traffic.get((producer, consumer), Traffic(0.0, 0.0))
            flow = Traffic(known.records + channel.rate, known.bytes + channel.byte_rate)
            found.traffic[producer, consumer] = flow
            buffer[consumer] += channel.queue_bytes
            room[consumer] += BUFFER_PER_CHANNEL
            if home[producer] != home[consumer]:
                network[producer] += channel.byte_rate
                network[consumer] += channel.byte_rate
        for key, executor in executors_of(state, home, metrics):
            found.load[key] = ExecutorLoad(executor.cpu, executor.memory, executor.state_bytes)
        for node, standby in standbys_of(state, metrics):
            worker = node, group_of(state.entry.name)
            found.workers[worker] = found.workers.get(worker, 0.0) + standby.cpu
            known_here = found.standbys.get(node, Vector())
            cpu, memory = known_here.cpu + standby.cpu, known_here.memory + standby.memory
            found.standbys[node] = Vector(cpu, memory)
    for key, load in found.load.items():
        found.executors[key] = Vector(load.cpu, load.memory, network[key], buffer[key], room[key])
    for name, member in view.members.items():
        if member.live:
            found.nodes[name] = _of_node(name, home, found, metrics.get(name))
    for key, load in found.load.items():
        worker = home[key], group_of(key.model)
        found.workers[worker] = found.workers.get(worker, 0.0) + load.cpu
    return found


def _of_node(name: str, home: Mapping[ExecutorKey, str], found: Measurement, part: NodeMetrics | None) -> Vector:
    own = [vector for key, vector in found.executors.items() if home[key] == name]
    return Vector(
        cpu=sum(vector.cpu for vector in own) + found.standbys.get(name, Vector()).cpu,
        memory=0 if part is None else part.rss,
        network=sum(vector.network for vector in own),
        buffer=sum(vector.buffer for vector in own),
        room=sum(vector.room for vector in own),
    )
