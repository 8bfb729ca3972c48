"""What a placement strategy is given and what it returns, and how a topology unfolds into executors and channels.

A strategy is a pure function `Problem -> Placement`; `penstock.placement.registry` names them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from penstock.errors import UsageError
from penstock.flow.graph import EdgeShape, Topology
from penstock.placement.limits import Limits
from penstock.settings import KEY_GROUPS


@dataclass(frozen=True, order=True, slots=True)
class ExecutorKey:
    """An executor anywhere in the cluster."""

    model: str
    stage: int
    index: int

    def __str__(self) -> str:
        return f"{self.model}:{self.stage}.{self.index}"


@dataclass(frozen=True, order=True, slots=True)
class WorkerSlot:
    """Room for one worker on a node."""

    node: str
    slot: int

    def __str__(self) -> str:
        return f"{self.node}#{self.slot}"


@dataclass(frozen=True, slots=True)
class NodeCapacity:
    """What a node can give to executors: what it has, less what others than the executors of this problem use."""

    node: str
    cpus: float = 1.0
    """In cores."""
    memory: int = 0
    """In bytes; 0 = not known."""
    network: float = 0.0
    """Bytes per second to and from other nodes, both counted; 0 = not known."""
    slots: int = 0
    """Workers that it can run; 0 = as many as are offered."""


@dataclass(frozen=True, slots=True)
class ExecutorLoad:
    """What an executor was measured to use, or is expected to."""

    cpu: float = 0.0
    """In cores."""
    memory: int = 0
    """In bytes."""
    state: int = 0
    """Bytes that a move would have to carry."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """The flow from one executor to another."""

    records: float
    """Per second."""
    bytes: float
    """Per second."""


@dataclass(frozen=True)
class Placement:
    """Which worker runs which executor."""

    workers: Mapping[ExecutorKey, WorkerSlot]

    def on(self, worker: WorkerSlot) -> tuple[ExecutorKey, ...]:
        """The executors of a worker, in order."""
        return tuple(sorted(key for key, slot in self.workers.items() if slot == worker))

    def nodes(self) -> tuple[str, ...]:
        """The nodes in use, in order."""
        return tuple(sorted({slot.node for slot in self.workers.values()}))

    def moves(self, other: Placement) -> tuple[ExecutorKey, ...]:
        """The executors that run elsewhere in `other`."""
        return tuple(
            sorted(key for key, slot in self.workers.items() if key in other.workers and other.workers[key] != slot)
        )


@dataclass(frozen=True)
class Problem:
    """One question to a strategy: the executors of one group (a worker holds executors of one group only)."""

    executors: tuple[ExecutorKey, ...]
    workers: tuple[WorkerSlot, ...]
    """Those that may be used."""
    nodes: Mapping[str, NodeCapacity] = field(default_factory=dict)
    load: Mapping[ExecutorKey, ExecutorLoad] = field(default_factory=dict)
    traffic: Mapping[tuple[ExecutorKey, ExecutorKey], Traffic] = field(default_factory=dict)
    """(producer, consumer) -> measured flow."""
    current: Placement | None = None
    """The running plan."""
    links: tuple[tuple[ExecutorKey, ExecutorKey], ...] = ()
    """(producer, consumer) of every channel, whether measured or not."""
    apart: tuple[tuple[ExecutorKey, ExecutorKey], ...] = ()
    """Pairs that never share a node: a standby and its primary."""
    pinned: frozenset[ExecutorKey] = frozenset()
    """Executors that stay where they run: they count, and are not moved."""
    limits: Limits = field(default_factory=Limits)
    horizon: float = 60.0
    """Seconds in which less traffic has to pay for the bytes that a move carries."""

    def __post_init__(self) -> None:
        if self.executors and not self.workers:
            raise UsageError(
                f"there is no worker for {len(self.executors)} executors",
                remedy="start a node, or give the existing ones more slots",
            )
        for what, items in (("executor", self.executors), ("worker", self.workers)):
            if len(set(items)) != len(items):
                twice = next(item for item in items if items.count(item) > 1)
                raise UsageError(f"{what} {twice} is named twice in a placement problem")
        self._check_pinned()
        if not self.horizon > 0:
            raise UsageError(f"a placement problem needs a horizon above 0 s, not {self.horizon}")

    def _check_pinned(self) -> None:
        running = {} if self.current is None else self.current.workers
        offered = set(self.workers) if self.pinned else ()
        for executor in sorted(self.pinned):
            if running.get(executor) not in offered:
                raise UsageError(f"executor {executor} is pinned, but does not run on any worker that is offered")


Strategy: TypeAlias = Callable[[Problem], Placement]
"""Places every executor of the problem on one of its workers. Pure: equal problems, equal answers."""


@dataclass(frozen=True, slots=True)
class Channel:
    """One producer executor's way to one consumer executor along one edge."""

    id: int
    edge: EdgeShape
    producer_stage: int
    producer_index: int
    consumer_stage: int
    consumer_index: int


def stage_counts(
    topology: Topology, executors: int | Mapping[int, int] | Mapping[str, int] | None = None
) -> dict[int, int]:
    """Executors per stage id: one number for all, or a number for some (named by stage id or by one of their steps) and
    the flow's default for the others. Raises `UsageError` for a count below 1, an unknown stage, or a keyed stage with
    more executors than there are key groups."""
    if executors is None:
        executors = topology.default_executors
    if isinstance(executors, int):
        counts = {stage.id: executors for stage in topology.stages}
    else:
        counts = {stage.id: topology.default_executors for stage in topology.stages}
        for name, number in executors.items():
            stage = topology.stage_of(name).id if isinstance(name, str) else name
            if stage not in counts:
                raise UsageError(f"flow {topology.flow!r} has no stage {name}; it has {len(counts)}, from 0 on")
            counts[stage] = number
    for shape in topology.stages:
        number = counts[shape.id]
        if number < 1:
            raise UsageError(f"stage {shape.id} ({', '.join(shape.steps)}) needs at least 1 executor, not {number}")
        if shape.keyed and number > KEY_GROUPS:
            raise UsageError(
                f"stage {shape.id} ({', '.join(shape.steps)}) cannot have {number} executors:"
                f" its keys belong to {KEY_GROUPS} groups",
                remedy=f"use at most {KEY_GROUPS}",
            )
    return counts


def channels(topology: Topology, counts: Mapping[int, int]) -> tuple[Channel, ...]:
    """The channels between executors, with dense ids from 0, in order of edge, producer and consumer: the same in every
    process that knows the topology and the counts.

    A shuffle joins every producer to every consumer. A pipe joins executor i to executor i when both stages have
    equally many; otherwise every one to every one, and the producer chooses: by key where the records have keys (the
    consumer may rely on equal keys meeting), in turn where they have none.
    """
    found: list[Channel] = []
    for edge in topology.edges:
        producers, consumers = counts[edge.source_stage], counts[edge.target_stage]
        straight = edge.kind == "pipe" and producers == consumers
        for producer in range(producers):
            for consumer in (producer,) if straight else range(consumers):
                found.append(Channel(len(found), edge, edge.source_stage, producer, edge.target_stage, consumer))
    return tuple(found)


def links(model: str, topology: Topology, counts: Mapping[int, int]) -> tuple[tuple[ExecutorKey, ExecutorKey], ...]:
    """The pairs of executors that a model's channels join, each once, in order."""
    return tuple(
        sorted(
            {
                (
                    ExecutorKey(model, c.producer_stage, c.producer_index),
                    ExecutorKey(model, c.consumer_stage, c.consumer_index),
                )
                for c in channels(topology, counts)
            }
        )
    )


def executor_keys(model: str, counts: Mapping[int, int]) -> tuple[ExecutorKey, ...]:
    """All executors of a model, in order."""
    return tuple(ExecutorKey(model, stage, index) for stage in sorted(counts) for index in range(counts[stage]))
