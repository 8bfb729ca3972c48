"""`window(…).aggregate(…)`: one record per key and window."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from penstock.errors import FlowError
from penstock.flow.accumulators import Aggregate
from penstock.flow.graph import Partitioning, Step
from penstock.flow.horizon import HorizonOperator
from penstock.flow.operator import StepContext
from penstock.flow.windows import Session, Tumbling, Window

__all__ = ["WindowAggregate"]

RESERVED = ("key", "start", "end")


@dataclass(frozen=True)
class WindowAggregate(Step):
    """Aggregate each key's records by windows in event time.

    The main output has plain records `{"key", "start", "end", <aggregates>}` with times in milliseconds; a keyed step
    behind it needs a `key_by` of its own. A window is emitted when the watermark has passed its end by `late_ms`. The
    output `late` has the records all of whose windows had been emitted when they came, as they were before `key_by`.
    Both outputs are without keys; their event times are `end - 1`, and those of the late records.
    """

    kind: ClassVar[str] = "window"
    keyed_input: ClassVar[bool] = True
    outputs: ClassVar[tuple[str, ...]] = ("out", "late")

    window: Window = field(default_factory=lambda: Tumbling(1000, 1000))
    aggregates: tuple[tuple[str, Aggregate], ...] = ()
    late_ms: int = 0

    def __post_init__(self) -> None:
        names = [name for name, _ in self.aggregates]
        if not names:
            raise FlowError(
                self.name, "no aggregate given", remedy="write aggregate(name, n=ps.count())", site=self.site
            )
        for name, aggregate in self.aggregates:
            if name in RESERVED:
                raise FlowError(
                    self.name, f"an aggregate cannot be called {name!r}", remedy="choose another name", site=self.site
                )
            if not isinstance(aggregate, Aggregate):
                raise FlowError(
                    self.name,
                    f"{name}={aggregate!r} is not an aggregate",
                    remedy="call one of ps.count, sum, mean, min, max, first, last, quantile, distinct_count",
                    site=self.site,
                )

    def operator(self, ctx: StepContext) -> HorizonOperator:
        from penstock.flow.steps.panes import PaneOperator
        from penstock.flow.steps.session import SessionOperator

        ctx.site = ctx.site or self.site
        if isinstance(self.window, Session):
            return SessionOperator(ctx, self.window, self.aggregates, self.late_ms)
        return PaneOperator(ctx, self.window, self.aggregates, self.late_ms)

    def partitioning(self, inputs: tuple[Partitioning, ...]) -> Partitioning:
        return Partitioning.NONE
