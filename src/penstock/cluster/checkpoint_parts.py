"""A node's share of durable checkpoints: barriers for its workers, their parts for the leader, and the word that a
checkpoint is complete.

The leader asks every node of a plan at the same time. The node posts `Barrier` to its workers (executors without inputs
start it, it flows with the records, also to other nodes), gathers what its primaries say, and answers when all their
parts are durable. The last question is the one that counts: an earlier one about the same model is given up. A number
that was asked for is never taken again, so what two leaders could ask for with the same number cannot mix.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from penstock.cluster.plan import ModelState, Plan
from penstock.cluster.service import Unavailable
from penstock.errors import ClusterError
from penstock.worker.messages import Barrier, Checkpointed, CheckpointFailed, Committed, Message

PartInfo: TypeAlias = tuple[int, float]
"""The size of a part in bytes, and how long its executor waited for barriers, in seconds."""


class NumberUsed(ClusterError):
    """A checkpoint of this number, or of a greater one, was asked for before. `used`: the greatest."""

    def __init__(self, used: int) -> None:
        super().__init__(f"checkpoint number {used} was used before")
        self.used = used


class Hosting(Protocol):
    """What runs on this node."""

    def plan_of(self, model: str) -> Plan | None:
        """The plan that this node carries out."""
        ...

    def workers_of(self, model: str, executors: set[str]) -> list[int]:
        """The workers that run any of these executors (their primaries) here."""
        ...

    def holding(self, model: str) -> list[int]:
        """The workers that have anything of the model."""
        ...

    def post(self, worker: int, message: Message) -> None:
        """Send a message to a worker."""
        ...


@dataclass(eq=False)
class _Gathering:
    number: int
    generation: int
    revision: int
    missing: set[str]
    parts: dict[str, PartInfo] = field(default_factory=dict)
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def give_up(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(Unavailable(why))
            self.done.exception()  # also when nobody waits any more


class Parts:
    """Answers the leader for one node."""

    def __init__(self, node: str, hosting: Hosting) -> None:
        self._node, self._hosting = node, hosting
        self._gathering: dict[str, _Gathering] = {}
        self._used: dict[str, tuple[int, int]] = {}
        """model -> (generation, the greatest number that was asked for)."""
        self._told: dict[tuple[str, int], tuple[int, int]] = {}
        """(model, worker) -> (generation, the last checkpoint that the worker knows to be complete)."""
        self.late = 0
        """Parts of checkpoints that had been given up."""

    async def take(
        self, model: str, generation: int, revision: int, number: int, timeout: float
    ) -> dict[str, PartInfo]:
        """Have the primaries here take checkpoint `number`; their parts, once they are durable. Raises `Unavailable`
        when that cannot be, or is not done in `timeout` seconds, and `NumberUsed`."""
        plan = self._hosting.plan_of(model)
        if plan is None or (plan.generation, plan.revision) != (generation, revision):
            known = "no plan" if plan is None else f"plan {plan.revision}"
            raise Unavailable(f"node {self._node} has {known} of {model}, not plan {revision}")
        used = self._used.get(model, (0, 0))
        if used >= (generation, number):
            raise NumberUsed(used[1])
        self._used[model] = generation, number
        mine = {executor for executor, assigned in plan.executors.items() if assigned.node == self._node}
        workers = self._hosting.workers_of(model, mine)
        if away := sorted(executor for executor in mine if not self._hosting.workers_of(model, {executor})):
            raise Unavailable(f"executors {', '.join(away)} are not running on node {self._node} now")
        self._give_up(model, f"checkpoint {number} was asked for")
        gathering = self._gathering[model] = _Gathering(number, generation, revision, mine)
        if not mine:
            gathering.done.set_result(None)
        for worker in workers:
            self._hosting.post(worker, Barrier(model, number))
        try:
            async with asyncio.timeout(timeout):
                await gathering.done
        except TimeoutError:
            silent = ", ".join(sorted(gathering.missing))
            raise Unavailable(
                f"executors {silent} on node {self._node} had not written their parts after {timeout:g} s"
            ) from None
        finally:
            if self._gathering.get(model) is gathering:
                del self._gathering[model]
        return gathering.parts

    def _give_up(self, model: str, why: str) -> None:
        if (gathering := self._gathering.pop(model, None)) is not None:
            gathering.give_up(why)

    def heard(self, message: Checkpointed | CheckpointFailed) -> None:
        """A worker said what became of a part."""
        gathering = self._gathering.get(message.model)
        if gathering is None or gathering.number != message.checkpoint:
            self.late += 1
            return
        if isinstance(message, CheckpointFailed):
            self._give_up(message.model, f"node {self._node}: {message.error}")
            return
        executor = str(message.executor)
        if executor in gathering.missing:
            gathering.missing.discard(executor)
            gathering.parts[executor] = message.bytes, message.pause
        if not gathering.missing and not gathering.done.done():
            gathering.done.set_result(None)

    def gone(self, worker: int, model: str, executors: Iterable[str]) -> None:
        """A worker has the model no more. Without one of these executors its checkpoint cannot be completed."""
        self._told.pop((model, worker), None)
        gathering = self._gathering.get(model)
        if gathering is not None and not gathering.missing.isdisjoint(executors):
            self._give_up(model, f"an executor on node {self._node} is gone")

    def committed(self, model: str, generation: int, number: int) -> None:
        """A checkpoint is complete: tell the workers that do not know. May be repeated."""
        plan = self._hosting.plan_of(model)
        if plan is None or plan.generation != generation:
            return
        for worker in self._hosting.holding(model):
            if self._told.get((model, worker), (0, 0)) < (generation, number):
                self._told[model, worker] = generation, number
                self._hosting.post(worker, Committed(model, number))

    def follow(self, models: Mapping[str, ModelState]) -> None:
        """What this node sees: checkpoints that it was not told of directly, and plans that have changed."""
        for name, state in models.items():
            if (record := state.durable) is not None and record.number:
                self.committed(name, record.generation, record.number)
        for name, gathering in list(self._gathering.items()):
            known = models.get(name)
            plan = known.plan if known is not None else None
            if plan is None or (plan.generation, plan.revision) != (gathering.generation, gathering.revision):
                self._give_up(name, f"the plan of {name} has changed")
        self._used = {name: used for name, used in self._used.items() if name in models}

    def forget(self) -> None:
        """Nothing runs here any more."""
        for name in list(self._gathering):
            self._give_up(name, f"node {self._node} has stopped its executors")
        self._told.clear()
