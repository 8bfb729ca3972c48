"""The loop of a node in which things get done: decide if it leads, converge, report. Woken by whatever has changed."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from penstock.clock import Clock
from penstock.cluster.bus import Bus, BusDown
from penstock.cluster.checkpointing import Keeper
from penstock.cluster.event_log import EventLog
from penstock.cluster.leader import Election
from penstock.cluster.participation import Participation
from penstock.cluster.runner import Runner
from penstock.cluster.silence import LOOKS
from penstock.cluster.stewardship import Steward
from penstock.cluster.store import CatalogueStore
from penstock.cluster.view import EMPTY, View
from penstock.errors import PenstockError


class Reconciler:
    """`view` is the latest; set it by `saw`."""

    def __init__(
        self,
        bus: Bus,
        store: CatalogueStore,
        clock: Clock,
        events: EventLog,
        participation: Participation,
        election: Election,
        steward: Steward,
        keeper: Keeper,
        runner: Runner,
        woken: asyncio.Event,
    ) -> None:
        self._bus, self._store, self._clock, self._events = bus, store, clock, events
        self._participation, self._election = participation, election
        self._steward, self._keeper, self._runner = steward, keeper, runner
        self._woken = woken
        self._view: View = EMPTY
        self._seen_at = 0.0
        self.problem = ""
        """Why the last round was not finished."""

    def saw(self, view: View) -> None:
        """A later view."""
        self._view, self._seen_at = view, self._clock.monotonic()

    async def run(self) -> None:
        """For ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience()):
                    await self._woken.wait()
            self._woken.clear()
            try:
                await self._round()
            except BusDown as error:
                self.problem = error.message
            except Exception as error:  # also one that is a bug: without this task nothing is started or stopped here
                bug = f"an error in the program: {type(error).__name__}: {error}"
                self.problem = error.message if isinstance(error, PenstockError) else bug
                self._events.say("node.problem", self.problem, level="error")
                with contextlib.suppress(PenstockError):
                    await self._events.flush()

    async def listen(self) -> None:
        """Notice workers that say nothing, for ever."""
        while True:
            self._runner.look_for_silence()
            await asyncio.sleep(self._bus.settings.silence / LOOKS)

    def _patience(self) -> float:
        """Until something has to be looked at again, if nobody rings."""
        poll, at = self._bus.settings.poll, self._steward.again_at
        return poll if at is None else min(poll, max(0.01, at - self._redis_time()))

    def _redis_time(self) -> float:
        """As far as it is known here, in seconds."""
        return self._view.now + self._clock.monotonic() - self._seen_at

    async def _round(self) -> None:
        view = self._view
        self._keeper.look(view, self._election.term)
        if not self._participation.trusted:
            return
        if term := self._election.term:
            may_judge = self._participation.may_judge()
            await self._steward.act(msgspec.structs.replace(view, now=self._redis_time()), term, may_judge)
            if may_judge:
                await self._forget_dead()
        self._runner.apply(view.lineage, view.models)
        await self._runner.flush()
        await self._events.flush()
        self.problem = ""

    async def _forget_dead(self) -> None:
        """Strike off members, and nodes that the catalogue still waits for, whose lease has run out."""
        sight = self._participation.sight
        if not sight.store.lineage:
            return
        store = sight.store
        for node in sorted(store.members.keys() | store.expected):
            if store.live(node, sight.now) is None:
                await self._store.forget(node, store.members.get(node, 0))
                with contextlib.suppress(BusDown):
                    await self._bus.command("DEL", self._bus.key("metrics", node))
