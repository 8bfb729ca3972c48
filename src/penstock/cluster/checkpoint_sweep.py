"""Removing durable checkpoints that nobody can restore from any more: of models that were taken offline or deleted, and
of earlier generations.

The catalogue's revision at which a generation became history never comes back, so what is history in any view, however
old, may be removed; a generation that is later than the view's revision is not judged by it.
"""

from __future__ import annotations

import asyncio
from typing import TypeAlias

from penstock.clock import Clock
from penstock.cluster.bus import BusDown
from penstock.cluster.cancellation import end
from penstock.cluster.checkpoint_places import Places, Thread
from penstock.cluster.checkpoint_scripts import NotLeading, Records
from penstock.cluster.event_log import EventLog
from penstock.cluster.plan import ModelState
from penstock.cluster.view import View
from penstock.errors import CheckpointError

_AGAIN = 30.0
"""Seconds after which a removal that failed is tried again."""
Signature: TypeAlias = tuple[int, bool, int, bool, bool]


class Sweeper:
    """Sweeps when a model has changed; everything once in each term."""

    def __init__(self, places: Places, records: Records, events: EventLog, clock: Clock, request: float) -> None:
        self._places, self._records, self._events, self._clock = places, records, events, clock
        self._request = request
        self._thread = Thread(f"the checkpoint store at {places}")
        self._swept: dict[str, Signature] = {}
        self._term = 0
        """In which everything was swept."""
        self._after = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self._problem = ""

    def look(self, view: View, term: int) -> None:
        """Begin to sweep, if there is a reason."""
        if self._task is not None and not self._task.done():
            return
        now = {name: _signature(state) for name, state in view.models.items()}
        changed = {name for name in now.keys() | self._swept.keys() if now.get(name) != self._swept.get(name)}
        if (changed or self._term != term) and self._clock.monotonic() >= self._after:
            self._task = asyncio.create_task(self._sweep(view, term, now, changed), name="checkpoint-sweep")

    async def close(self) -> None:
        """End what is under way."""
        await end(self._task)

    async def _sweep(self, view: View, term: int, seen: dict[str, Signature], changed: set[str]) -> None:
        models = sorted(changed) if self._term == term else None
        try:
            found = await self._thread.run(3 * self._request, self._places.generations, view.lineage, models)
            for model, generation in found:
                if not needed(view, model, generation):
                    await self._thread.run(3 * self._request, self._places.remove, view.lineage, model, generation)
            history = [name for name, record in view.checkpoints.items() if not needed(view, name, record.generation)]
            if history:
                await self._records.forget(term, history)
        except (BusDown, NotLeading):
            return
        except CheckpointError as error:
            self._after = self._clock.monotonic() + _AGAIN
            if self._problem != error.message:
                self._problem = error.message
                text = f"checkpoints that are not needed any more stay: {error}"
                self._events.say("checkpoint.kept", text, level="warning")
            return
        self._swept, self._term, self._problem = seen, term, ""


def needed(view: View, model: str, generation: int) -> bool:
    """Whether the checkpoints of a generation may still be written or restored."""
    if generation > view.revision:
        return True
    state = view.models.get(model)
    if state is None:
        return False
    entry, plan = state.entry, state.plan
    if plan is not None and plan.generation == generation:
        return True
    if entry.desired != "online":
        return bool(state.run)  # it is being stopped
    # A generation that has no checkpoint of its own yet may have taken over from one that has.
    return generation == entry.generation or state.checkpoint is None


def _signature(state: ModelState) -> Signature:
    plan = state.plan
    planned = 0 if plan is None else plan.generation
    online = state.entry.desired == "online"
    return state.entry.generation, online, planned, bool(state.run), state.checkpoint is not None
