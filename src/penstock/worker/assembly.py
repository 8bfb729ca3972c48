"""What every executor is built from: contexts of its steps, its operators, the policy for failing records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from penstock.connectors.json_lines import jsonable
from penstock.errors import StepError
from penstock.flow import failure
from penstock.flow.connector import ConnectorContext, Sink, connector_context
from penstock.flow.draws import Draws
from penstock.flow.graph import Step
from penstock.flow.operator import FailurePolicy, Operator, StepContext
from penstock.placement.plan import Channel
from penstock.worker.messages import Collected, ExecutorId

if TYPE_CHECKING:
    from penstock.worker.model import Model

DEAD_LETTER = "dead-letter"
"""The name of the sink of each executor that takes what failed."""
_COLLECTED_AT_ONCE = 8192
"""Records in one message to the supervisor."""


class Assembly(ABC):
    """The parts of one executor of a model. `draws`: where a replicated one writes down what is drawn by chance."""

    def __init__(
        self, model: Model, executor_id: ExecutorId, plan: tuple[Channel, ...], draws: Draws | None = None
    ) -> None:
        self.model, self.id, self.draws = model, executor_id, draws
        self.load, self.graph, self.around = model.load, model.graph, model.around
        here = (executor_id.stage, executor_id.index)
        self.incoming = [c for c in plan if (c.consumer_stage, c.consumer_index) == here]
        self.outgoing = [c for c in plan if (c.producer_stage, c.producer_index) == here]
        self.executors = self.load.counts[executor_id.stage]
        self.counters: dict[str, Counter[str]] = {}
        self.policy = self._policy()

    @abstractmethod
    def sink(self, ctx: StepContext, sink: Sink) -> Operator:
        """The operator of a sink step, or of the dead-letter sink."""

    @abstractmethod
    def dead_letter(self, letter: Any) -> None:
        """Take what failed, when there is a dead-letter sink."""

    def context(self, name: str) -> StepContext:
        """What step `name` knows of where it runs."""
        index, executors = self.id.index, self.executors
        if name == DEAD_LETTER:
            # Every executor of every stage has one: its number must be its own in the whole model, or two of them
            # would write the same file.
            counts = self.load.counts
            index += sum(count for stage, count in counts.items() if stage < self.id.stage)
            executors = sum(counts.values())
        return StepContext(
            step=name,
            index=index,
            executors=executors,
            bounded=self.graph.topology.bounded,
            clock=self.around.clock,
            config=self.load.config,
            on_error=self.policy,
            wake=self.around.wake,
            counters=self.counters.setdefault(name, Counter()),
            draws=self.draws,
        )

    def connector(self, ctx: StepContext) -> ConnectorContext:
        """The same for a source or sink."""
        # In a cluster many models may be made of one flow, and each has its own sessions and positions elsewhere.
        return connector_context(
            ctx,
            self.load.model.replace("/", ":"),
            on_bad_record=partial(self.policy, ctx),
            checkpointed=self.load.checkpoint_url is not None,
            collect=self._collect,
        )

    def _collect(self, step: str, records: list[Any]) -> None:
        for at in range(0, len(records), _COLLECTED_AT_ONCE):
            part = [jsonable(record) for record in records[at : at + _COLLECTED_AT_ONCE]]
            self.around.say(Collected(self.model.name, step, part))

    def _policy(self) -> FailurePolicy:
        sink = self.graph.on_error
        if not isinstance(sink, Sink):
            return failure.policy(sink)
        self.policy = _fail_again
        self.sink(self.context(DEAD_LETTER), sink)
        return failure.policy(sink, self.dead_letter)

    def operator(self, step: Step) -> Operator:
        """The operator of a step."""
        ctx = self.context(step.name)
        sink = getattr(step, "sink", None)
        if step.kind == "sink" and isinstance(sink, Sink):
            return self.sink(ctx, sink)
        return step.operator(ctx)


def _fail_again(ctx: StepContext, record: Any, error: Exception) -> None:
    raise StepError(ctx.step, f"the dead-letter sink itself failed: {error}") from error
