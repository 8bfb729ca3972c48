"""`Flow`: what an author writes into, step by step, until `build()` makes a checked `Graph` of it."""

from __future__ import annotations

from typing import Any, Literal

from penstock.errors import FlowError
from penstock.flow.check import (
    caller_site,
    check_connector,
    check_graph,
    check_name,
    check_on_error,
    check_step,
    duplicate,
)
from penstock.flow.config import config
from penstock.flow.connector import Sink, Source
from penstock.flow.graph import Graph, Input, Partitioning, Step
from penstock.flow.steps.source import SourceStep
from penstock.flow.stream import Stream, stream_of

__all__ = ["Flow"]


class Flow:
    """A dataflow under construction.

    `on_error`: what to do with a record for which the author's code raises: `"fail"` stops the flow, `"skip"` leaves
    the record out and counts it, a sink gets a description of it (a dead letter). `executors`: how many executors each
    stage gets, unless the run says otherwise. Raises `FlowError`, here and in every method, for what cannot work.
    """

    def __init__(self, name: str, on_error: Literal["fail", "skip"] | Sink = "fail", executors: int = 1) -> None:
        check_name(name, "flow")
        check_on_error(on_error)
        self.name = name
        self.on_error = on_error
        self.executors = executors
        self._steps: dict[str, Step] = {}
        self._partitionings: dict[str, Partitioning] = {}
        self._unfinished: dict[int, tuple[str, str]] = {}

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps written so far."""
        return tuple(self._steps.values())

    def source(self, name: str, source: Source) -> Stream[Any]:
        """Begin a stream with the records of `source`."""
        check_name(name)
        check_connector(name, source, Source)
        return self.add(SourceStep(name=name, site=caller_site(), source=source))

    def add(self, step: Step) -> Stream[Any]:
        """Put in a step of one's own making: a frozen dataclass derived from `penstock.flow.graph.Step`, whose
        `inputs` name the steps that feed it. The stream methods all end here."""
        earlier = self._steps.get(step.name)
        if earlier is not None:
            raise duplicate(step, earlier)
        inputs = tuple(self._partitionings.get(i.step, Partitioning.NONE) for i in step.inputs)
        if all(i.step in self._steps for i in step.inputs):
            check_step(step, inputs)
        self._steps[step.name] = step
        self._partitionings[step.name] = step.partitioning(inputs)
        return stream_of(self, Input(step.name))

    def build(self) -> Graph:
        """The flow as checked, frozen data. Raises `FlowError`."""
        for site, what in self._unfinished.values():
            raise FlowError(None, what, remedy="finish it with .aggregate(name, …)", site=site)
        config.check()
        return check_graph(self.name, self._steps.values(), self.on_error, self.executors)

    def __repr__(self) -> str:
        return f"Flow({self.name!r}: {' '.join(self._steps) or 'empty'})"
