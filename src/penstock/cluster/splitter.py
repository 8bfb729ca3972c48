"""The leader splits executors of keyed stages whose input stays full, and merges those that have been idle for long.

When, and which key groups, is decided by `penstock.placement.splitting` from what nodes publish each second; it is
carried out as any other wish for a split (`split_requests`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from penstock.cluster import shifting
from penstock.cluster.event_log import EventLog
from penstock.cluster.metrics import NodeMetrics
from penstock.cluster.plan import ModelState, Plan
from penstock.cluster.service import ExecutorView, SplitOrder
from penstock.cluster.view import View
from penstock.errors import ClusterError, UsageError
from penstock.flow.hot_keys import HotKey
from penstock.placement.splitting import Measured, Merge, Split, SplitPolicy, Splitting, Unsplittable
from penstock.settings import Balancing

ASSOCIATIVE = frozenset({"count", "reduce", "reduce_pairs", "window"})
"""Steps whose values may be combined before they are sent."""
_AGAIN = 60.0
"""Seconds after which it is told once more that an executor cannot be split."""


class Wish(Protocol):
    """`split_requests.Splits.wish`."""

    async def __call__(
        self, view: View, name: str, stage: int, giver: int, groups: Collection[int], reason: str, *, taker: int = -1
    ) -> SplitOrder: ...


def policy_of(settings: Balancing, least: int = 1) -> SplitPolicy:
    """Raises `UsageError` that names the setting which makes no sense."""
    try:
        return SplitPolicy(
            full=settings.split_full,
            sustained=settings.split_sustained,
            cooldown=settings.split_cooldown,
            most=max(least, settings.split_most),
            least=least,
            merge_below=settings.merge_below,
            idle_for=settings.merge_after,
        )
    except UsageError as error:
        raise UsageError(
            f"the balancing settings for splits cannot be kept: {error.message}",
            remedy=f"{error.remedy}: split_full, split_sustained, split_cooldown, split_most, merge_below, merge_after",
        ) from None


class Splitter:
    """`observe` once a second, `act` when there is time."""

    def __init__(self, settings: Balancing, events: EventLog, wish: Wish) -> None:
        policy_of(settings)
        self._settings, self._events, self._wish = settings, events, wish
        self._stages: dict[tuple[str, int], Splitting] = {}
        self._measured: dict[tuple[str, int], dict[int, Measured]] = {}
        self._busy: set[tuple[str, int]] = set()
        """Stages that were being changed when they were last looked at."""
        self._told: dict[tuple[str, int], tuple[str, float]] = {}

    def observe(self, now: float, view: View, metrics: Mapping[str, NodeMetrics]) -> None:
        """What is known now, on the leader."""
        seen: set[tuple[str, int]] = set()
        for name, state in view.models.items():
            plan = state.plan
            if plan is None or not plan.replicated or state.entry.topology is None or state.entry.desired != "online":
                continue
            views = {v.id: v for part in metrics.values() for v in part.executors.get(name, ())}
            full = _fullness(name, metrics)
            for stage in state.entry.topology.stages:
                if stage.keyed:
                    key = (name, stage.id)
                    seen.add(key)
                    splitting = self._stages.get(key) or self._new(key, plan, stage.kinds)
                    measured = self._measured[key] = _measured(plan, stage.id, views, full)
                    splitting.observe(now, measured)
                    self._note(now, key, splitting, state)
        for gone in self._stages.keys() - seen:
            del self._stages[gone], self._measured[gone]

    def _new(self, key: tuple[str, int], plan: Plan, kinds: Collection[str]) -> Splitting:
        policy = policy_of(self._settings, plan.counts[key[1]])
        made = self._stages[key] = Splitting(policy, associative=not ASSOCIATIVE.isdisjoint(kinds))
        return made

    def _note(self, now: float, key: tuple[str, int], splitting: Splitting, state: ModelState) -> None:
        busy = state.plan is not None and (shifting.under_way(state.plan) is not None or bool(state.shifts))
        if busy:
            self._busy.add(key)
        elif key in self._busy:
            self._busy.discard(key)
            splitting.changed(now)

    async def act(self, now: float, view: View) -> None:
        """Ask for what is due."""
        room = _room(view)
        for (name, stage), splitting in list(self._stages.items()):
            state = view.models.get(name)
            if (name, stage) in self._busy or state is None or state.plan is None or state.entry.topology is None:
                continue
            record = shifting.record_of(state.plan, stage)
            decision = splitting.decide(now, record.table, room)
            why = shifting.obstacle(state.entry.topology, stage)
            if isinstance(decision, Split | Unsplittable) and why:
                giver = decision.giver if isinstance(decision, Split) else decision.executor
                self._tell(now, name, stage, f"executor {giver} is overloaded and cannot be split: {why}")
            elif isinstance(decision, Split) and not self._measured[name, stage][decision.giver].groups:
                pass  # its load by keys is about to be known
            elif isinstance(decision, Split):
                await self._ask(now, view, name, stage, decision.giver, decision.groups, decision.reason)
            elif isinstance(decision, Merge):
                groups, taker = decision.groups, decision.taker
                await self._ask(now, view, name, stage, decision.giver, groups, decision.reason, taker)
            elif isinstance(decision, Unsplittable):
                self._tell(now, name, stage, str(decision))

    async def _ask(
        self,
        now: float,
        view: View,
        name: str,
        stage: int,
        giver: int,
        groups: Collection[int],
        reason: str,
        taker: int = -1,
    ) -> None:
        try:
            await self._wish(view, name, stage, giver, groups, reason, taker=taker)
            self._busy.add((name, stage))
        except ClusterError:
            pass  # it is being changed by somebody else: what is measured afterwards tells
        self._stages[name, stage].changed(now)

    def _tell(self, now: float, name: str, stage: int, text: str) -> None:
        known = self._told.get((name, stage))
        if known is None or now > known[1] + _AGAIN:
            self._told[name, stage] = (text, now)
            self._events.say("stage.unsplittable", f"stage {stage} of {name}: {text}", model=name, level="warning")


def _fullness(name: str, metrics: Mapping[str, NodeMetrics]) -> dict[str, float]:
    """Executor -> how full the fullest of its input channels is."""
    full: dict[str, float] = {}
    for part in metrics.values():
        for channel in part.channels.get(name, ()):
            full[channel.consumer] = max(full.get(channel.consumer, 0.0), channel.full)
    return full


def _measured(
    plan: Plan, stage: int, views: Mapping[str, ExecutorView], full: Mapping[str, float]
) -> dict[int, Measured]:
    found: dict[int, Measured] = {}
    for index in plan.indexes(stage):
        name = f"{stage}.{index}"
        view = views.get(name)
        if view is not None:
            hot = None if view.hot_key is None else HotKey(view.hot_key, *view.hot_share)
            found[index] = Measured(min(1.0, full.get(name, 0.0)), view.busy, view.groups, hot, view.hot_group)
    return found


def _room(view: View) -> int:
    """Further executors for which there is room."""
    slots = sum(lives.slots for lives in view.live().values())
    return slots - sum(len(state.plan.executors) for state in view.models.values() if state.plan is not None)
