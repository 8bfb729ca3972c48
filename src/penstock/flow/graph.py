"""A flow as frozen data: steps, where each takes its input from, and how they fuse into stages.

A **stage** is a chain (a small graph) of steps that run fused in one executor. An edge between two stages is a
**channel edge**: `shuffle` (by key) or `pipe` (executor i to executor i). The depth of a step is the largest number of
shuffles on a way to it; only steps of equal depth fuse, so channels always lead to a deeper stage and the stage graph
cannot have a circle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, ClassVar

import msgspec

from penstock.errors import FlowError
from penstock.flow.operator import Operator, StepContext


class Partitioning(Enum):
    """What is known about the keys of a stream."""

    NONE = "none"
    """Not keyed."""
    KEYED = "keyed"
    """Every record has a key; equal keys may be in different executors."""
    PARTITIONED = "partitioned"
    """Equal keys are in the same executor."""


@dataclass(frozen=True)
class Input:
    """One input of a step: which output of which step feeds it."""

    step: str
    output: int = 0


@dataclass(frozen=True)
class Step:
    """A node of the graph. Subclasses (one file each in `penstock.flow.steps`) add their parameters as fields."""

    kind: ClassVar[str] = "step"
    keyed_input: ClassVar[bool] = False
    """Whether equal keys must meet in one executor."""
    needs_values: ClassVar[bool] = True
    """Whether the step looks at the values of keyed records; if not, a shuffle need not carry them."""
    outputs: ClassVar[tuple[str, ...]] = ("out",)

    name: str
    inputs: tuple[Input, ...] = ()
    site: str = field(default="", compare=False)
    """Where the author wrote it: `file.py:12`."""

    def operator(self, ctx: StepContext) -> Operator:
        """A fresh operator for one executor. Sources and sinks are run by the worker instead."""
        raise NotImplementedError(f"{self.kind} has no operator")

    def partitioning(self, inputs: tuple[Partitioning, ...]) -> Partitioning:
        """What is known about the keys of this step's output."""
        return Partitioning.NONE

    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, the main one first."""
        return self.outputs


class StageShape(msgspec.Struct, frozen=True):
    """A stage without its code: what schedulers and other processes may know."""

    id: int
    steps: tuple[str, ...]
    kinds: tuple[str, ...]
    has_source: bool
    keyed: bool
    """Whether its input is shuffled by key, so that it can be split by key groups."""


class EdgeShape(msgspec.Struct, frozen=True):
    """A channel edge: from an output of a step to an input port of a step in a deeper stage."""

    id: int
    source_stage: int
    source_step: str
    source_output: int
    target_stage: int
    target_step: str
    target_port: int
    kind: str
    """`shuffle` or `pipe`."""
    needs_values: bool = True


class Topology(msgspec.Struct, frozen=True):
    """A graph without code, safe to send: stages and the edges between them, both in order of id."""

    flow: str
    bounded: bool
    stages: tuple[StageShape, ...]
    edges: tuple[EdgeShape, ...]
    sources: tuple[str, ...] = ()
    push_sources: tuple[str, ...] = ()
    keyed_steps: tuple[str, ...] = ()
    """Steps whose state can be looked up by key."""
    default_executors: int = 1
    dead_letters: bool = False
    """Whether records that fail go to a sink of their own."""

    def stage_of(self, step: str) -> StageShape:
        """The stage that runs `step`. Raises `FlowError` when there is no such step."""
        for stage in self.stages:
            if step in stage.steps:
                return stage
        known = ", ".join(s for stage in self.stages for s in stage.steps)
        raise FlowError(step, f"flow {self.flow!r} has no such step", remedy=f"the steps are: {known}")


@dataclass(frozen=True)
class Graph:
    """A checked flow: steps in topological order."""

    name: str
    steps: Mapping[str, Step]
    on_error: Any = "fail"
    """`fail`, `skip`, or a dead-letter `Sink`."""
    executors: int = 1
    """How many executors each stage gets unless the run says otherwise."""

    @cached_property
    def partitionings(self) -> dict[str, Partitioning]:
        """For each step, what is known about the keys of its (main) output."""
        known: dict[str, Partitioning] = {}
        for step in self.steps.values():
            known[step.name] = step.partitioning(tuple(known[i.step] for i in step.inputs))
        return known

    def is_shuffle(self, step: Step, port: int) -> bool:
        """Whether the edge into `port` of `step` must bring equal keys together."""
        upstream = self.partitionings[step.inputs[port].step]
        return step.keyed_input and upstream is not Partitioning.PARTITIONED

    @cached_property
    def depths(self) -> dict[str, int]:
        """For each step, the largest number of shuffles on a way to it."""
        depth: dict[str, int] = {}
        for step in self.steps.values():
            depth[step.name] = max(
                (depth[i.step] + self.is_shuffle(step, port) for port, i in enumerate(step.inputs)), default=0
            )
        return depth

    @cached_property
    def topology(self) -> Topology:
        """The stages and channel edges."""
        from penstock.flow.fuse import topology

        return topology(self)
