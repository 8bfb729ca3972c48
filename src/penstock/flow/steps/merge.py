"""Several streams into one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from penstock.flow.batch import IDLE, Batch
from penstock.flow.graph import Partitioning, Step
from penstock.flow.operator import Operator, StepContext

__all__ = ["Merge"]


@dataclass(frozen=True, kw_only=True)
class Merge(Step):
    """The records of all inputs, in the order in which they come; keys and times stay. Either all inputs are keyed or
    none is."""

    kind: ClassVar[str] = "merge"
    keeps_times: ClassVar[bool] = True

    def operator(self, ctx: StepContext) -> Operator:
        return _MergeOperator(ctx)

    def partitioning(self, inputs: tuple[Partitioning, ...]) -> Partitioning:
        if Partitioning.NONE in inputs:
            return Partitioning.NONE
        return inputs[0] if len(set(inputs)) == 1 else Partitioning.KEYED


class _MergeOperator(Operator):
    """One lane can arrive by several ports (branch, then merge); its watermark is the least of those ports'."""

    def __init__(self, ctx: StepContext) -> None:
        super().__init__(ctx)
        self._lanes: dict[int, dict[int, int]] = {}
        self._sent: dict[int, int] = {}

    def process(self, port: int, batch: Batch) -> None:
        self.out.send(batch)

    def advance(self, port: int, lane: int, watermark: int) -> None:
        ports = self._lanes.setdefault(lane, {})
        ports[port] = watermark
        least = min(ports.values())
        sent = self._sent.get(lane)
        if sent is None or least > sent or (sent == IDLE and least != IDLE):
            self._sent[lane] = least
            self.out.advance(lane, least)
