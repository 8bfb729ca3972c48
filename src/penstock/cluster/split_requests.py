"""Asking for splits and merges of executors: checked, written down for the leader."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

import msgspec

from penstock.cluster import shifting, upgrading
from penstock.cluster.bus import Bus
from penstock.cluster.move_requests import movable
from penstock.cluster.plan import ModelState, Plan, ShiftWish
from penstock.cluster.service import Conflict, NotFound, SplitOrder
from penstock.cluster.view import View
from penstock.placement.splitting import halves

DEADLINE = 30.0
"""Seconds in which it has to begin."""


class Splits:
    """`look` reads what Redis has now."""

    def __init__(self, bus: Bus, node: str, look: Callable[[], Awaitable[View]]) -> None:
        self._bus, self._node, self._look = bus, node, look

    async def ask(self, name: str, what: str, user: str = "") -> SplitOrder:
        """Have an executor split: `what` is an executor (`1.0`), or a step or the number of a stage, of which the
        executor with the most key groups is meant. Not waited for. Raises `NotFound`, `Conflict`, `Unavailable`."""
        view = await self._look()
        state, plan = movable(view, name)
        stage, giver = _meant(state, plan, name, what)
        record = shifting.record_of(plan, stage)
        groups = halves(dict.fromkeys(record.groups(giver), 1.0))[1]
        if not groups:
            raise Conflict(f"executor {stage}.{giver} of {name!r} has a single key group left: that cannot be divided")
        return await self.wish(view, name, stage, giver, groups, "somebody asked for it", user=user)

    async def wish(
        self,
        view: View,
        name: str,
        stage: int,
        giver: int,
        groups: Collection[int],
        reason: str,
        *,
        taker: int = -1,
        user: str = "",
    ) -> SplitOrder:
        """Write it down. Raises `NotFound`, `Conflict`, `Unavailable`."""
        state, plan = movable(view, name)
        check(state, plan, stage)
        wish = ShiftWish(
            generation=plan.generation, asked=view.now, deadline=view.now + DEADLINE, giver=giver,
            groups=tuple(groups), taker=taker, reason=reason, user=user,
        )  # fmt: skip
        what = "is to be split" if taker < 0 else f"is to be merged into {stage}.{taker}"
        text = f"executor {stage}.{giver} of {name} {what}: {reason}"
        keys = [self._bus.key(part) for part in ("models", f"plan:{name}", f"moves:{name}", "rev", "log", "bell")]
        arguments: list[str | bytes | int] = [
            name,
            state.entry.generation,
            text,
            user,
            self._node,
            stage,
            msgspec.json.encode(wish),
        ]
        if not int(await self._bus.script("split", keys, arguments)):
            raise Conflict(f"{name!r} is being changed already", remedy="look at it, and ask again")
        return SplitOrder(model=name, executor=f"{stage}.{giver}", groups=len(groups))


def check(state: ModelState, plan: Plan, stage: int) -> None:
    """Raises `Conflict` when nothing of the stage can be divided now."""
    topology = state.entry.topology
    why = shifting.obstacle(topology, stage) if topology is not None else "its package is not on this node yet"
    if why:
        raise Conflict(
            f"{state.entry.name!r} cannot be split there: {why}",
            remedy="only steps behind a key_by whose results are keyed anew, or go to a sink beside them, can be split",
        )
    if upgrading.under_way(state):
        raise Conflict(f"{state.entry.name!r} is being updated", remedy="ask again when that is over")
    if shifting.under_way(plan) is not None or state.shifts:
        raise Conflict(f"an executor of {state.entry.name!r} is being split already", remedy="ask again after that")


def _meant(state: ModelState, plan: Plan, name: str, what: str) -> tuple[int, int]:
    topology = state.entry.topology
    stage, _, index = what.partition(".")
    if stage.isdigit() and index.isdigit() and what in plan.executors:
        return int(stage), int(index)
    shapes = () if topology is None else topology.stages
    found = next((shape.id for shape in shapes if what in (str(shape.id), *shape.steps)), None)
    if found is None:
        known = ", ".join(step for shape in shapes for step in shape.steps)
        executors = ", ".join(sorted(plan.executors))
        raise NotFound(
            f"{name!r} has no executor, stage or step {what!r}", remedy=f"executors: {executors}; steps: {known}"
        )
    record = shifting.record_of(plan, found)
    return found, max(record.executors, key=lambda one: (len(record.groups(one)), -one))
