"""The leader's keeper of durable checkpoints: one task per online model that has them.

Every `checkpoint_interval`: a number from Redis, the question to every node of the plan, and when the parts of all
executors are durable

1. the store is asked whether they are there, as this node sees it;
2. Redis is asked whether this node still leads by the same term and the plan is the same, so all parts are of one set
   of primaries, and the cut is consistent: a manifest that is written after this is good, whatever happens then;
3. the manifest is written, and Redis records the number if all that is still so;
4. the nodes are told; who misses it sees it in Redis.

A changed plan (a promotion, a restart, a move, a split) gives the checkpoint under way up. A failure is put on record,
and the next attempt comes by itself, after pauses that grow to `LONGEST_PAUSE`; the model goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from penstock.clock import Clock
from penstock.cluster.bus import Bus, BusDown
from penstock.cluster.cancellation import end
from penstock.cluster.checkpoint_parts import PartInfo
from penstock.cluster.checkpoint_places import Place, Places, kept
from penstock.cluster.checkpoint_record import CheckpointRecord
from penstock.cluster.checkpoint_scripts import NotLeading, Records
from penstock.cluster.checkpoint_sweep import Sweeper
from penstock.cluster.event_log import EventLog
from penstock.cluster.plan import ModelState, Plan, present
from penstock.cluster.routing import Answer, AskCheckpoint, AskCommitted
from penstock.cluster.service import Unavailable
from penstock.cluster.view import View
from penstock.errors import CheckpointError, ClusterError
from penstock.exchange.checkpoint import Abandoned, CheckpointCoordinator, Complete
from penstock.settings import RunSettings
from penstock.worker.store import CheckpointStore

LONGEST_PAUSE = 10.0
"""Seconds between two attempts when many have failed, unless the interval is longer."""
_TELL = 1.0
"""Seconds that a node has to hear that a checkpoint is complete; after that it has to look for itself."""
_SLOW = 5.0
"""A failure after so many seconds is told at once, a quicker one when it comes again."""
_LONGEST_ERROR = 1000
_NOTHING: dict[str, Any] = {}
_SUPERSEDED = "its plan has changed"
_UNDER_WAY = 2.0
"""Seconds that a view may be old."""
_BEHIND = 2.0
"""Seconds that nodes get beyond their own deadline, so that their reasons arrive."""


class Asking(Protocol):
    """`Questions`, as the keeper needs them."""

    async def ask(self, view: View, node: str, question: AskCheckpoint | AskCommitted) -> Answer:
        """See `Questions.ask`."""
        ...


@dataclass(frozen=True)
class Means:
    """What every task of the keeper uses."""

    records: Records
    events: EventLog
    asking: Asking
    run: RunSettings
    request: float
    """Seconds for one call of the store."""
    term: Callable[[], int]
    """The term in which this node leads right now; 0: it does not."""
    clock: Clock


class Keeper:
    """Keeps the checkpoints of all models while this node leads."""

    def __init__(self, means: Means, places: Places) -> None:
        self._means, self._places = means, places
        self._models: dict[str, _Keeping] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._sweeper = Sweeper(places, means.records, means.events, means.clock, means.request)

    def look(self, view: View, term: int) -> None:
        """What is seen in `term`; 0: this node does not lead. Starts and ends what has to be."""
        leading = bool(term and view.lineage and self._places.root is not None)
        wanted = {name: state for name, state in view.models.items() if leading and _kept(state)}
        for name, keeping in list(self._models.items()):
            state = wanted.get(name)
            if state is None or keeping.ended or not keeping.is_for(term, view.lineage, state):
                self._end(name)
        for name, state in wanted.items():
            keeping = self._models.get(name) or self._begin(name, view, state, term)
            keeping.see(view, state)
        if leading:
            self._sweeper.look(view, term)

    def _begin(self, name: str, view: View, state: ModelState, term: int) -> _Keeping:
        keeping = self._models[name] = _Keeping(self._means, self._place(view, state), view, state, term)
        keeping.start()
        return keeping

    def _place(self, view: View, state: ModelState) -> Place:
        assert state.entry.topology is not None
        return self._places.store(
            view.lineage, state.entry.name, state.entry.generation, state.entry.topology.flow
        )  # fmt: skip

    def _end(self, name: str) -> None:
        task = self._models.pop(name).task
        if task is not None:
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def settled(self, state: ModelState) -> bool:
        """Whether `state.checkpoint` is what the store has, read after everything of the present plan: what a model is
        restored from. If not, the store is asked now; a later view tells. A store that does not answer is tried again
        and again, and why is on record meanwhile."""
        if self._places.root is None or not kept(state.entry.recovery):
            return True
        keeping = self._models.get(state.entry.name)
        return keeping is not None and keeping.settled(state)

    async def close(self) -> None:
        """End everything."""
        for name in list(self._models):
            self._end(name)
        await end(*self._ending)
        await self._sweeper.close()

    async def latest(self, view: View, state: ModelState) -> tuple[int, dict[str, Any]] | None:
        """Number and manifest of the last complete checkpoint of a model's present generation, as the store has it;
        `None`: there is none. Raises `CheckpointError`: `store.Damaged` when trying again does not help."""
        if state.entry.topology is None:
            raise CheckpointError(f"this node does not have the package of {state.entry.name} yet")
        return await self._place(view, state).run(self._means.request, CheckpointStore.latest)


def _kept(state: ModelState) -> bool:
    entry = state.entry
    return entry.desired == "online" and not entry.error and entry.topology is not None and kept(entry.recovery)


def ready(state: ModelState) -> bool:
    """Whether every executor of a model can take part in a checkpoint: it runs (or has come to its end) by a plan that
    its node has connected."""
    plan = state.plan
    if plan is None or plan.generation != state.entry.generation:
        return False
    if plan.upgrade is not None and plan.upgrade.ordered and not plan.upgrade.proved:
        return False  # the last one is the way back
    if state.shifts or any(record.shift is not None for record in plan.routings.values()):
        return False  # what is on its way would be in none of the parts
    nodes = {assigned.node for assigned in plan.executors.values()}
    return all(state.connected.get(node, 0) >= plan.revision for node in nodes) and _states(state, plan) <= {
        "running",
        "finished",
    }


def finished(state: ModelState) -> bool:
    """Whether every executor has come to the end of its input: one more checkpoint, and nothing changes any more."""
    return state.plan is not None and _states(state, state.plan) == {"finished"}


def _states(state: ModelState, plan: Plan) -> set[str]:
    reports = [present(plan, state.run, plan.seat(executor)) for executor in plan.executors]
    return {"" if report is None else report.state for report in reports}


class _Keeping:
    """The checkpoints of one generation of a model in one term."""

    def __init__(self, means: Means, place: Place, view: View, state: ModelState, term: int) -> None:
        self._means, self._place, self._term = means, place, term
        self._name, self._generation = state.entry.name, state.entry.generation
        self._lineage = view.lineage
        self._view, self._state = view, state
        self._seen_at = means.clock.monotonic()
        self._record = state.durable or CheckpointRecord(generation=self._generation)
        self._changed = asyncio.Event()
        self._wanted: str | None = ""
        """The plan for which the store is to be asked what it has."""
        self._settled: str | None = None
        """The plan for which it was asked last."""
        self._noted = float("-inf")
        """When the record was last written without a checkpoint, Redis time."""
        self._due = float("-inf")
        self._used = 0
        """The greatest number that is known to be used."""
        self._final = ""
        """The plan of which everything had finished when the last complete checkpoint began."""
        self._announced = ""
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work."""
        self.task = asyncio.create_task(self._run(), name=f"checkpoints-{self._name}")

    @property
    def ended(self) -> bool:
        """Whether it has found that this node does not lead. It may do so again, in the same term."""
        return self.task is not None and self.task.done()

    def is_for(self, term: int, lineage: tuple[str, ...], state: ModelState) -> bool:
        """Whether it need not begin anew."""
        return (term, lineage, state.entry.generation) == (self._term, self._lineage, self._generation)

    def see(self, view: View, state: ModelState) -> None:
        """The latest."""
        self._view, self._state = view, state
        self._seen_at = self._means.clock.monotonic()
        self._changed.set()

    def settled(self, state: ModelState) -> bool:
        """See `Keeper.settled`."""
        if self._settled == state.plan_sha and (state.checkpoint or 0) == self._record.number:
            return True
        if self._wanted is None and self._settled != state.plan_sha:
            self._wanted = state.plan_sha
            self._changed.set()
        return False

    # ---- the loop ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while True:
                if self._wanted is not None:
                    await self._repeatedly(self._recall)
                elif self._forgotten():
                    await self._try(self._note_again)
                elif await self._due_now():
                    await self._try(self._attempt)
        except NotLeading:
            pass  # `Keeper.look` ends this, or begins anew

    async def _repeatedly(self, act: Callable[[], Any]) -> None:
        while not await self._try(act):
            await asyncio.sleep(max(0.0, self._due - self._means.clock.monotonic()))

    async def _try(self, act: Callable[[], Any]) -> bool:
        """Whether it went well. A failure is put on record."""
        began = self._means.clock.monotonic()
        self._due = began + self._means.run.checkpoint_interval
        try:
            await act()
            return True
        except BusDown:
            return False  # Redis is away for everybody, and that is told elsewhere
        except (CheckpointError, ClusterError) as error:
            text = str(error)
        except NotLeading:
            raise
        except Exception as error:
            text = f"an error in the program: {type(error).__name__}: {error}"
        await self._failed(text[:_LONGEST_ERROR], self._means.clock.monotonic() - began)
        interval = self._means.run.checkpoint_interval
        pause = min(interval * 2.0 ** min(self._record.in_a_row, 30), max(interval, LONGEST_PAUSE))
        self._due = max(self._due, began + pause)
        return False

    async def _due_now(self) -> bool:
        """Whether the next checkpoint is due; if not, waits until it is or something has changed."""
        self._changed.clear()
        left: float | None = None
        if ready(self._state) and not (finished(self._state) and self._final == self._state.plan_sha):
            left = self._due - self._means.clock.monotonic()
            if left <= 0:
                return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await self._changed.wait()
        return False

    def _forgotten(self) -> bool:
        """Whether Redis has lost the record, or shows an earlier one, for longer than a view is under way."""
        known, view = self._state.durable, self._view
        if known is not None and known.number >= self._record.number:
            return False
        return view.now > max(self._record.at, self._noted) + _UNDER_WAY

    async def _note_again(self) -> None:
        self._noted = self._view.now
        await self._means.records.note(self._term, self._name, self._record)

    async def _failed(self, text: str, took: float) -> None:
        record = self._record
        self._record = msgspec.structs.replace(
            record, failed=record.failed + 1, in_a_row=record.in_a_row + 1, error=text
        )
        alike = re.sub(r"\d+", "#", text)
        if alike != self._announced and (self._record.in_a_row > 1 or took >= _SLOW):
            self._announced = alike
            last = f"the last complete one is {record.number}" if record.number else "there is none yet"
            self._say("checkpoint.failed", f"a checkpoint of {self._name} failed ({last}): {text}", "warning")
        try:
            await self._means.records.note(self._term, self._name, self._record)
        except ClusterError:
            pass  # the next attempt puts it on record

    def _say(self, kind: str, text: str, level: str = "info") -> None:
        self._means.events.say(kind, text, model=self._name, level=level)

    async def _recall(self) -> None:
        """What the store has: numbers that are used, and the last complete checkpoint. Redis may have another one on
        record; the store's counts."""
        wanted = self._wanted
        self._used = max(self._used, await self._in_store(CheckpointStore.next_number) - 1)
        found = await self._in_store(CheckpointStore.latest)
        number, manifest = (0, _NOTHING) if found is None else found
        if number != self._record.number:
            self._record = msgspec.structs.replace(
                self._record, number=number, at=manifest.get("at", 0.0), seconds=0.0, pause=0.0,
                bytes=sum(manifest.get("parts", {}).values()), of=manifest.get("of", 0),
            )  # fmt: skip
        await self._means.records.correct(self._term, self._name, self._record)
        self._noted, self._settled = self._view.now, wanted
        if self._wanted == wanted:
            self._wanted = None
        self._due = float("-inf")  # the first one at once: until then there is nothing to go back to

    async def _in_store(self, method: Callable[..., Any], *arguments: Any) -> Any:
        return await self._place.run(self._means.request, method, *arguments)

    # ---- one checkpoint ---------------------------------------------------------------------------------------------

    async def _attempt(self) -> None:
        means, view, state = self._means, self._view, self._state
        assert state.plan is not None
        began, final = means.clock.monotonic(), finished(state)
        number = await means.records.begin(self._term, self._name, self._generation, state.plan_sha, self._used)
        if number is None:
            return
        self._used = number
        outcome = await self._gathered(view, state, state.plan, number, began)
        if isinstance(outcome, Abandoned):
            await self._discard(number)
            if outcome.reason != _SUPERSEDED:
                raise CheckpointError(outcome.reason)
            return
        if not await self._complete(view, state, state.plan, outcome):
            await self._discard(number)
            return
        self._final, self._settled = state.plan_sha if final else "", None
        await self._tell(view, state.plan, number)
        await self._prune()

    async def _gathered(
        self, view: View, state: ModelState, plan: Plan, number: int, began: float
    ) -> Complete[str] | Abandoned[str]:
        """Ask all nodes; every part, or why there is no checkpoint."""
        timeout = self._means.run.checkpoint_timeout
        coordinator = CheckpointCoordinator(plan.executors, timeout=timeout + _BEHIND, after=number - 1)
        coordinator.begin(began)
        question = AskCheckpoint(self._name, timeout, self._generation, plan.revision, number)
        nodes = sorted({assigned.node for assigned in plan.executors.values()})
        asked = {asyncio.create_task(self._ask(view, node, question)) for node in nodes}
        superseded = asyncio.create_task(self._superseded(state.plan_sha))
        waiting: set[asyncio.Task[Any]] = {*asked, superseded}
        try:
            while True:
                left = began + coordinator.timeout - self._means.clock.monotonic()
                done, waiting = await asyncio.wait(
                    waiting, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED
                )  # fmt: skip
                outcome: Complete[str] | Abandoned[str] | None = None
                if superseded in done:
                    outcome = coordinator.abort(_SUPERSEDED)
                for task in done & asked:
                    outcome = outcome or _taken(coordinator, number, task)
                if outcome is None and not waiting & asked:
                    outcome = coordinator.abort(f"executors {', '.join(coordinator.waiting)} were on no node")
                outcome = outcome or coordinator.on_time(self._means.clock.monotonic())
                if outcome is not None:
                    return outcome
        finally:
            await end(*asked, superseded)

    async def _ask(self, view: View, node: str, question: AskCheckpoint) -> dict[str, PartInfo]:
        answer = await self._means.asking.ask(view, node, question)
        if answer.ok:
            return dict(answer.value)
        if isinstance(answer.value, int):
            self._used = max(self._used, answer.value)
        raise Unavailable(answer.problem)

    async def _superseded(self, sha: str) -> None:
        """Until the model's plan is another one than that of `sha`, or is about to be."""
        while self._state.plan_sha == sha and self._wanted is None:
            self._changed.clear()
            await self._changed.wait()

    async def _complete(self, view: View, state: ModelState, plan: Plan, done: Complete[str]) -> bool:
        """Write the manifest and put the checkpoint on record; `False` when it must not count."""
        means = self._means
        sizes = {executor: part.info[0] for executor, part in done.parts.items()}
        await self._all_there(plan, done.number, sizes)
        if not await means.records.unchanged(self._term, self._name, self._generation, state.plan_sha):
            return False
        now = means.clock.monotonic()
        record = CheckpointRecord(
            generation=self._generation, number=done.number, of=plan.durable_of,
            at=round(self._view.now + now - self._seen_at, 3),
            seconds=round(now - done.started, 4), bytes=sum(sizes.values()), failed=self._record.failed,
            pause=max((part.info[1] for part in done.parts.values()), default=0.0),
        )  # fmt: skip
        if means.term() != self._term:
            raise NotLeading
        await self._in_store(CheckpointStore.write_manifest, done.number, self._manifest(state, plan, record, sizes))
        if not await means.records.complete(self._term, self._name, state.plan_sha, record):
            return False
        if self._announced:
            self._say("checkpoint.resumed", f"checkpoints of {self._name} are complete again: {done.number}")
            self._announced = ""
        self._record = record
        return True

    async def _all_there(self, plan: Plan, number: int, sizes: dict[str, int]) -> None:
        """Whether this node sees what the others have written. Raises `CheckpointError`."""
        found = await self._in_store(CheckpointStore.parts, number)
        for executor, size in sizes.items():
            if found.get(executor) != size:
                node = plan.executors[executor].node
                raise CheckpointError(
                    f"the part that executor {executor} on node {node} has written is not in {self._place.shown} "
                    "as the leader sees it",
                    remedy="the store (--checkpoints) has to be one place that all machines share",
                )

    def _manifest(
        self, state: ModelState, plan: Plan, record: CheckpointRecord, sizes: dict[str, int]
    ) -> dict[str, Any]:
        topology = state.entry.topology
        assert topology is not None
        return {
            "flow": topology.flow,
            "checkpoint": record.number,
            "steps": [list(stage.steps) for stage in topology.stages],
            "counts": {str(stage): count for stage, count in plan.counts.items()},
            "parts": sizes,
            "model": self._name,
            "generation": self._generation,
            "digest": plan.upgrade.digest if plan.upgrade is not None and plan.upgrade.proved else plan.digest,
            "of": record.of,
            "revision": plan.revision,
            "term": self._term,
            "at": record.at,
        }

    async def _tell(self, view: View, plan: Plan, number: int) -> None:
        """Tell the nodes that a checkpoint is complete, as far as they hear it at once."""
        question = AskCommitted(self._name, _TELL, self._generation, number)

        async def tell(node: str) -> None:
            try:
                await self._means.asking.ask(view, node, question)
            except ClusterError:
                pass  # it sees it in Redis

        async with asyncio.TaskGroup() as group:
            for node in plan.nodes():
                group.create_task(tell(node))

    async def _prune(self) -> None:
        try:
            await self._in_store(CheckpointStore.prune, self._means.run.checkpoints_kept)
        except CheckpointError as error:
            self._say("checkpoint.kept", f"old checkpoints of {self._name} stay: {error}", "warning")

    async def _discard(self, number: int) -> None:
        """Remove what there is of a checkpoint that was given up; what cannot be removed now, `_prune` removes."""
        try:
            await self._in_store(CheckpointStore.discard, number)
        except CheckpointError:
            pass


def _taken(
    coordinator: CheckpointCoordinator[str], number: int, task: asyncio.Task[dict[str, PartInfo]]
) -> Complete[str] | Abandoned[str] | None:
    """What follows from a node's answer."""
    error = task.exception()
    if error is not None:
        return coordinator.abort(str(error))
    outcome = None
    for executor, info in task.result().items():
        outcome = coordinator.on_part(executor, number, info) or outcome
    return outcome


def keeper(
    node: str,
    bus: Bus,
    places: Places,
    events: EventLog,
    asking: Asking,
    run: RunSettings,
    term: Callable[[], int],
    clock: Clock,
) -> Keeper:
    """The keeper of a node."""
    return Keeper(Means(Records(bus, node), events, asking, run, bus.settings.request, term, clock), places)
