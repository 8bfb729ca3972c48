"""Asking for planned moves: checked, written down for the leader, waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from penstock.cluster import upgrading
from penstock.cluster.bus import Bus
from penstock.cluster.plan import ModelState, Move, Plan
from penstock.cluster.service import Conflict, MoveOrder, NotFound, Unavailable
from penstock.cluster.view import View

DEADLINE = 60.0
"""Seconds that a move may take until it is given up."""
_LOOK_EVERY = 0.1
"""Seconds between two looks whether it is done."""


class Moves:
    """`look` reads what Redis has now."""

    def __init__(self, bus: Bus, node: str, look: Callable[[], Awaitable[View]]) -> None:
        self._bus, self._node, self._look = bus, node, look

    async def ask(self, name: str, executor: str, node: str, user: str = "") -> MoveOrder:
        """Have it done; not waited for. Raises `NotFound`, `Conflict`, `Unavailable`."""
        view = await self._look()
        state, plan = movable(view, name)
        source = _checked(view, plan, name, executor, node)
        if source == node:
            return MoveOrder(model=name, executor=executor, source=source, target=node, done=True)
        move = Move(to=node, generation=plan.generation, asked=view.now, deadline=view.now + DEADLINE, user=user)
        text = f"executor {executor} of {name} is to move from node {source} to node {node}"
        names = ("models", f"plan:{name}", f"moves:{name}", "rev", "log", "bell")
        keys = [self._bus.key(part) for part in names]
        arguments: list[Any] = [
            name,
            state.entry.generation,
            text,
            user,
            self._node,
            executor,
            msgspec.json.encode(move),
        ]
        if not int(await self._bus.script("move", keys, arguments)):
            raise Conflict(f"{name!r} was changed by somebody else meanwhile", remedy="look at it, and ask again")
        return MoveOrder(model=name, executor=executor, source=source, target=node)

    async def begin(self, name: str, executor: str, node: str) -> None:
        """As `ask`."""
        await self.ask(name, executor, node)

    async def wait(self, order: MoveOrder, seconds: float | None) -> MoveOrder:
        """The order when it is done, has been given up, or `seconds` are over."""
        limit = DEADLINE + self._bus.settings.request if seconds is None else min(seconds, DEADLINE)
        try:
            async with asyncio.timeout(limit):
                while not _over(order, await self._look()):
                    await asyncio.sleep(_LOOK_EVERY)
        except TimeoutError:
            pass
        return order


def _over(order: MoveOrder, view: View) -> bool:
    """`view` is later than the order: a move that it does not show is over."""
    state = view.models.get(order.model)
    if state is None or state.plan is None or order.executor not in state.plan.executors:
        order.reason = f"{order.model!r} is not online any more"
        return True
    order.done = state.plan.executors[order.executor].node == order.target
    move = state.moves.get(order.executor)
    if move is not None and move.to == order.target:
        return False
    if not order.done:
        order.reason = "it was given up: the events of the model tell why"
    return True


def movable(view: View, name: str) -> tuple[ModelState, Plan]:
    """A model whose executors can be moved or split. Raises `NotFound`, `Conflict`, `Unavailable`."""
    state = view.models.get(name)
    if state is None or not state.entry.digest:
        raise NotFound(f"there is no model {name!r}", remedy="penstock model list shows those that there are")
    if state.entry.desired != "online" or state.entry.error:
        raise Conflict(f"{name!r} does not run", remedy="only executors of models that are online can be changed")
    if state.plan is None:
        raise Unavailable(f"{name!r} is being started")
    if not state.plan.replicated:
        raise Conflict(
            f"{name!r} runs with recovery none: its executors have no replicas that could take over elsewhere",
            remedy="bring it online with --recovery passive or active",
        )
    if upgrading.under_way(state):
        raise Conflict(f"{name!r} is being updated", remedy="wait for its end: penstock events --follow")
    return state, state.plan


def _checked(view: View, plan: Plan, name: str, executor: str, node: str) -> str:
    """The node that it is on now."""
    if executor not in plan.executors:
        known = ", ".join(sorted(plan.executors))
        raise NotFound(f"{name!r} has no executor {executor!r}", remedy=f"there are: {known}")
    live = view.live()
    if node not in live:
        what = "is not live now" if node in view.members else "is no member of the cluster"
        raise NotFound(f"node {node!r} {what}", remedy=f"live nodes: {', '.join(sorted(live))}")
    return plan.executors[executor].node
