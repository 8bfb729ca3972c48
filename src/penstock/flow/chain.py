"""A stage at work: operators wired to each other inside one executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from penstock.flow.batch import Batch
from penstock.flow.graph import Graph, Step
from penstock.flow.operator import KeyedOperator, Operator, Outlet


class _Link:
    """An outlet that leads straight into another operator of the same chain."""

    __slots__ = ("advance_into", "port", "process")

    def __init__(self, target: Operator, port: int) -> None:
        self.process, self.advance_into, self.port = target.process, target.advance, port

    def send(self, batch: Batch) -> None:
        self.process(self.port, batch)

    def advance(self, lane: int, watermark: int) -> None:
        self.advance_into(self.port, lane, watermark)


class _Fan:
    """An outlet that leads to several."""

    __slots__ = ("outlets",)

    def __init__(self, outlets: list[Outlet]) -> None:
        self.outlets = outlets

    def send(self, batch: Batch) -> None:
        for outlet in self.outlets:
            outlet.send(batch)

    def advance(self, lane: int, watermark: int) -> None:
        for outlet in self.outlets:
            outlet.advance(lane, watermark)


@dataclass(frozen=True)
class Chain:
    """The operators of one stage in one executor, upstream first, and the ways in.

    `entry(step, port)` gives the outlet through which batches of a channel enter; `outlet(step)` the one through which
    a source's records leave it.
    """

    operators: Mapping[str, Operator]
    _outlets: Mapping[tuple[str, int], Outlet]

    def entry(self, step: str, port: int) -> Outlet:
        """The way into `port` of `step`."""
        return _Link(self.operators[step], port)

    def outlet(self, step: str, output: int = 0) -> Outlet:
        """What output `output` of `step` leads to."""
        return self._outlets[step, output]

    def keyed(self) -> dict[str, KeyedOperator]:
        """The operators that have state per key."""
        return {name: op for name, op in self.operators.items() if isinstance(op, KeyedOperator)}

    def finish(self) -> None:
        """The input has ended: let every operator emit what is left, upstream first."""
        for operator in self.operators.values():
            operator.drain()
            operator.finish()

    def drain(self) -> None:
        """Wait for work in the background."""
        for operator in self.operators.values():
            operator.drain()

    def close(self) -> None:
        """Close every operator; the first error is raised after all were tried."""
        first: Exception | None = None
        for operator in self.operators.values():
            try:
                operator.close()
            except Exception as error:
                first = first or error
        if first is not None:
            raise first


def build_chain(
    graph: Graph,
    stage: int,
    make: Callable[[Step], Operator],
    exits: Mapping[tuple[str, int], list[Outlet]],
) -> Chain:
    """Wire stage `stage` of `graph`. `make` gives the operator of a step (also of sinks); sources have none.
    `exits[(step, output)]` are the channel outlets fed by that output."""
    names = graph.topology.stages[stage].steps
    operators: dict[str, Operator] = {}
    for name in names:
        step = graph.steps[name]
        if step.kind != "source":
            operators[name] = make(step)
    outlets: dict[tuple[str, int], Outlet] = {}
    for name in names:
        step = graph.steps[name]
        for output in range(len(step.output_names())):
            targets: list[Outlet] = [
                _Link(operators[other.name], port)
                for other in (graph.steps[n] for n in names)
                for port, source in enumerate(other.inputs)
                if (source.step, source.output) == (name, output) and not graph.is_shuffle(other, port)
            ]
            targets += exits.get((name, output), [])
            outlets[name, output] = targets[0] if len(targets) == 1 else _Fan(targets)
        if name in operators:
            operators[name].connect(tuple(outlets[name, o] for o in range(len(step.output_names()))))
    return Chain(operators, outlets)
