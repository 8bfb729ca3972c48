"""Rebalancing on a node: it measures, answers those who ask, and on the leader moves executors by itself.

What to do is decided in `balancing`; executors are moved by the mechanism of planned moves, which keeps their state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from penstock.clock import Clock
from penstock.cluster.balance_views import PlacementView, RebalanceView
from penstock.cluster.balancer import Balancer, News
from penstock.cluster.balancing import Answer, Scene, feeding
from penstock.cluster.bottlenecks import Bottleneck
from penstock.cluster.carrying import Carrier
from penstock.cluster.event_log import EventLog
from penstock.cluster.measuring import key_of
from penstock.cluster.metrics import NodeMetrics
from penstock.cluster.placement_presentation import (
    name_of,
    rebalance_view,
    standbys_of,
    with_resources,
    with_situation,
    with_vectors,
)
from penstock.cluster.service import Conflict, ModelView, NodeView, NotFound
from penstock.cluster.splitter import Splitter, Wish
from penstock.cluster.view import EMPTY, View
from penstock.errors import ClusterError, UsageError
from penstock.placement.balance import Blocked, Transfer
from penstock.placement.explain import Move
from penstock.placement.plan import ExecutorKey
from penstock.settings import ClusterSettings

RELIEVABLE = frozenset({"cpu", "memory", "network", "worker"})
"""Resources of which a node has more when an executor leaves it."""

Mover = Callable[[str, str, str], Awaitable[None]]
"""(model, executor, node): ask for a planned move. Raises `ClusterError` when it is refused."""


async def _cannot_move(model: str, executor: str, node: str) -> None:
    raise Conflict(f"executor {executor} of {model} cannot be moved: this node has no way to move executors")


class Rebalancing:
    """Fed once a second with what this node knows (`observe`). Raises `UsageError` for settings that make no sense."""

    def __init__(
        self,
        settings: ClusterSettings,
        clock: Clock,
        events: EventLog,
        move: Mover = _cannot_move,
        split: Wish | None = None,
    ) -> None:
        self._settings, self._clock, self._events, self._move = settings, clock, events, move
        self._balancer = Balancer(settings.balancing)
        self._splitter = Splitter(settings.balancing, events, split) if split is not None else None
        self._carrier = Carrier(settings.balancing.moves, moving)
        self._due = float("-inf")
        """When the leader looks again whether something better is to be had."""
        self._complaint = ""
        self._view, self._leads = EMPTY, False
        self._woken = asyncio.Event()

    # ---- each second ------------------------------------------------------------------------------------------------

    def observe(self, view: View, metrics: Mapping[str, NodeMetrics], leads: bool) -> None:
        """Take in what is known now. The leader tells of bottlenecks. Never raises: without rebalancing everything else
        goes on."""
        now = self._clock.monotonic()
        if leads and not self._leads:  # a new leader does not know what the one before was about to do
            self._due = now + self._settings.balancing.interval
        self._view, self._leads = view, leads
        try:
            news = self._balancer.observe(now, view, metrics)
            if leads:
                self._tell_of(now, view, news)
                if self._splitter is not None:
                    self._splitter.observe(now, view, metrics)
        except Exception as error:  # also one that is a bug
            self._say_once(f"an error in the program: {type(error).__name__}: {error}")
        self._woken.set()

    async def run(self) -> None:
        """Act upon what was observed, for ever. It takes its time: neither metrics nor leases wait for it."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            await self.act()

    async def act(self) -> None:
        """Do what has to be done now: the leader looks for something better, if it is to; moves that were decided are
        asked for."""
        now, view = self._clock.monotonic(), self._view
        try:
            if self._leads and self._settings.rebalance and now >= self._due and not self._carrier.busy:
                self._due = now + self._settings.balancing.interval
                await self._improve(now, view)
            await self._carry(now, view)
            if (
                self._splitter is not None
                and self._leads
                and self._settings.rebalance
                and self._settings.balancing.split
            ):
                await self._splitter.act(now, view)
        except Exception as error:  # also one that is a bug
            self._say_once(f"an error in the program: {type(error).__name__}: {error}")

    def _tell_of(self, now: float, view: View, news: News) -> None:
        for begun in news.begun:
            text = f"node {begun.node} has too little of {begun}; {self._advice(now, view, begun)}"
            self._events.say("node.bottleneck", text, level="warning")
        for ended in news.ended:
            self._events.say("node.relieved", f"node {ended.node} has enough of {ended.resource} again")

    async def _improve(self, now: float, view: View) -> None:
        try:
            scene = self._balancer.scene(now, view, moving(view))
            if moves := self._relief(now, scene):
                why = f"node {moves[0].source.node} has too much to do"
            else:
                answer = await asyncio.to_thread(self._balancer.due, now, scene)
                moves, why = answer.moves, str(answer.whole)
                self._complain(answer)
        except UsageError as error:
            self._say_once(str(error))
            return
        if moves and not self._carrier.busy:  # nobody has asked for others meanwhile
            self._tell(moves, why)
            self._carrier.begin(moves, view)

    def _relief(self, now: float, scene: Scene) -> tuple[Move, ...]:
        """The move that gives the most overloaded node some room, while there is a bottleneck."""
        if not any(found.resource in RELIEVABLE for found in self._balancer.present()):
            return ()
        step = self._balancer.relieved(now, scene)
        if not isinstance(step, Transfer):
            return ()
        load = scene.load.get(step.executor)
        return (Move(step.executor, step.source, step.target, 0 if load is None else load.state),)

    def _complain(self, answer: Answer) -> None:
        for error in answer.faults.values():
            self._say_once(str(error))
        if not answer.faults:
            self._complaint = ""

    def _say_once(self, text: str) -> None:
        if text != self._complaint:
            self._complaint = text
            self._events.say("placement.problem", f"the running placement stays: {text}", level="warning")

    def _tell(self, moves: tuple[Move, ...], why: str) -> None:
        some = ", ".join(f"{move.executor} to {move.target.node}" for move in moves[:5])
        more = f" and {len(moves) - 5} more" if len(moves) > 5 else ""
        self._events.say("placement.changed", f"{why}: {some}{more}")

    def _advice(self, now: float, view: View, found: Bottleneck) -> str:
        if found.resource == "buffer":
            return "what it runs is slower than what feeds it: more executors per stage would help, or a faster step"
        try:
            scene = self._balancer.scene(now, view, moving(view))
            step = self._balancer.relieved(now, scene)
        except UsageError as error:
            return str(error)
        if isinstance(step, Transfer):
            return f"it would help to move executor {step.executor} to node {step.target.node}"
        reasons = [str(blocked) for blocked in step if isinstance(blocked, Blocked)]
        sources = ", ".join(str(key) for key in feeding(scene, found.node)[:5])
        slower = f", or slower sources ({sources})" if sources else ""
        return "; ".join([*reasons, f"another node would help{slower}"])

    async def _carry(self, now: float, view: View) -> None:
        refused: set[str] = set()
        for move in self._carrier.next(now, view):
            if move.executor.model in refused:
                continue
            try:
                await self._move(move.executor.model, name_of(move.executor), move.target.node)
            except ClusterError as error:
                refused.add(move.executor.model)
                self._carrier.failed(move)
                text = f"executor {move.executor} was not moved to node {move.target.node}: {error}"
                self._events.say("placement.problem", text, level="warning")

    # ---- when somebody asks -----------------------------------------------------------------------------------------

    async def rebalance(self, view: View, *, dry_run: bool, strategy: str | None, model: str | None) -> RebalanceView:
        """See `NodeService.rebalance`; `model` is a full name."""
        if model is not None and model not in view.models:
            raise NotFound(f"there is no model {model!r}", remedy="penstock model list shows those that there are")
        now = self._clock.monotonic()
        scene = self._balancer.scene(now, view, moving(view))
        answer = await asyncio.to_thread(
            self._balancer.asked, now, scene, strategy=strategy, model=model, lossy=dry_run
        )
        if answer.faults and not answer.parts:
            raise next(iter(answer.faults.values()))
        if not dry_run:
            await self._begin(view, now, scene, answer, strategy, model)
        return rebalance_view(answer, dry_run=dry_run, horizon=self._settings.balancing.horizon)

    async def _begin(
        self, view: View, now: float, scene: Scene, answer: Answer, strategy: str | None, model: str | None
    ) -> None:
        if self._carrier.busy:
            raise Conflict("executors are being moved already", remedy="wait for the end: penstock events --follow")
        if answer.moves:
            self._tell(answer.moves, f"somebody asked for it, {answer.whole}")
            self._carrier.begin(answer.moves, view)
            await self._carry(now, view)
            return
        if scene.lossy:
            thought = await asyncio.to_thread(
                self._balancer.asked, now, scene, strategy=strategy, model=model, lossy=True
            )
            if thought.moves:
                raise Conflict(
                    f"what would have to move would lose its state ({thought.whole})",
                    remedy="models move when they run with recovery passive or active; --dry-run shows the moves",
                )

    # ---- views ------------------------------------------------------------------------------------------------------

    def nodes(self, views: list[NodeView]) -> list[NodeView]:
        """With what they use."""
        found = self._balancer.latest
        return [with_resources(view, found, self._balancer.bottlenecks(view.id)) for view in views]

    def model(self, view: ModelView) -> ModelView:
        """With what its executors use."""
        return with_vectors(view, self._balancer.latest)

    def placement(self, placed: PlacementView, view: View) -> PlacementView:
        """With standbys, and cut, load and edges of this moment."""
        state = view.models.get(placed.model)
        if state is not None and state.plan is not None:
            placed.standbys = standbys_of(state.plan)
        try:
            scene = self._balancer.scene(self._clock.monotonic(), view, moving(view))
        except UsageError:  # no node is live, as far as this one knows
            return placed
        return with_situation(placed, scene, self._balancer.latest)


def moving(view: View) -> frozenset[ExecutorKey]:
    """The executors for which a planned move is under way."""
    return frozenset(key_of(name, executor) for name, state in view.models.items() for executor in state.moves)
