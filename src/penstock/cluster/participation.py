"""One node's part in the cluster, for real: drives the machine of `transaction.participant`.

Every event goes into the machine at once and every instruction that comes out becomes a task of its own, with a
deadline, which reports exactly one `Done` or `Failed` (none for `Cancel`). So nothing that is slow holds up a renewal
of the lease. One more task feeds the machine with time and with the bell. What is done to files, workers and other
nodes is behind `Hands`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Protocol

from penstock.clock import Clock
from penstock.cluster.bus import BusDown
from penstock.cluster.cancellation import end
from penstock.cluster.local_journal import JournalInDoubt, LocalJournal
from penstock.cluster.store import EMPTY, CatalogueStore, Sight
from penstock.cluster.transaction import instructions as do
from penstock.cluster.transaction.admission import Standing
from penstock.cluster.transaction.instructions import (
    Done,
    Event,
    Failed,
    Granted,
    Instruction,
    Promised,
    Rang,
    Seen,
    Tick,
)
from penstock.cluster.transaction.participant import Participant
from penstock.cluster.transaction.rebuild import belongs
from penstock.cluster.transaction.records import Entry, Journal, Tx, Vote
from penstock.errors import ClusterError, PenstockError
from penstock.settings import ClusterSettings

TICKS = 12
"""The machine is told the time so often within a lease."""
_ARRIVE_FOR_LEASES = 4
"""A name whose former owner was killed is free after one lease; one that is still held after so many is in use."""
_ANSWER = 1 / 6
"""Within this part of a lease, peers have promised or have not."""
_STOP_AGAIN = 0.5
_NO_REASON_TO_LOOK = (
    do.Renew, do.AskPeers, do.Prepare, do.Discard, do.Write, do.Apply, do.StopExecutors, do.DropUpload,
)  # fmt: skip


class Hands(Protocol):
    """What a node does to itself. Anything may be cancelled when it takes too long, and is asked for again then."""

    def staged(self) -> Collection[str]:
        """The transactions of which something is found in the staging directory."""
        ...

    def lacking(self, models: Mapping[str, Entry]) -> Collection[str]:
        """Those of these models, which are in the journal, whose files are not on this node."""
        ...

    async def prepare(self, tx: Tx) -> None:
        """Everything that can fail, invisibly. The text of a `PenstockError` is the reason of this node's no."""
        ...

    async def discard(self, tx_id: str) -> None:
        """Remove what `prepare` has made, also a `prepare` that was cancelled."""
        ...

    async def apply(self, entry: Entry) -> None:
        """Make this node have the model as the entry says. Idempotent."""
        ...

    async def stop_executors(self, reason: str) -> None:
        """Stop everything of users that runs here."""
        ...

    async def drop_upload(self, digest: str) -> None:
        """Remove a package that was uploaded to this node."""
        ...

    async def ask_peers(self, members: Collection[str]) -> bool:
        """Whether all these nodes give their `Participation.promise`, asked now; who does not answer has not. There is
        a sixth of a lease of time, in which those who say no may be asked again."""
        ...


class Participation:
    """See the module. `on_sight` gets every look, after the machine; `on_standing` whether executors may run here and
    the problem (empty: none), whenever that changes. Both must return at once. Times in seconds: `found_after` see
    `Participant`, `patience` is the deadline of local work other than preparing."""

    def __init__(
        self,
        node: str,
        store: CatalogueStore,
        journal_file: LocalJournal,
        hands: Hands,
        clock: Clock,
        settings: ClusterSettings,
        *,
        found_after: float | None = 1.0,
        patience: float = 60.0,
        on_sight: Callable[[Sight], None] = lambda sight: None,
        on_standing: Callable[[bool, str], None] = lambda trusted, problem: None,
    ) -> None:
        self.node, self.sight = node, EMPTY
        self._store, self._file, self._hands = store, journal_file, hands
        self._clock, self._settings = clock, settings
        self._found_after, self._patience = found_after, patience
        self._on_sight, self._on_standing = on_sight, on_standing
        self._nonce = secrets.token_hex(8)
        self._machine: Participant | None = None
        self._broken = ""
        self._stopping = False
        self._told: tuple[bool, str] | None = None
        self._clockwork: asyncio.Task[None] | None = None
        self._last_stand: asyncio.Task[None] | None = None
        self._work: set[asyncio.Task[None]] = set()
        self._preparing: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._looking = self._look_again = False

    # ---- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the journal, take part, and wait until this node has a lease. Raises `ClusterError` or `JournalError`
        when that cannot be; nothing is left behind then."""
        journal = await asyncio.to_thread(self._file.load)
        if journal is not None and journal.node != self.node:
            raise ClusterError(
                f"the journal {self._file.path} is that of node {journal.node!r}, this one is named {self.node!r}",
                remedy="start it by its old name, or give it a data directory of its own",
            )
        self._machine = Participant(
            self.node, self._nonce, journal, self._hands.staged(),
            () if journal is None else self._hands.lacking(journal.models),
            lease=self._settings.lease, poll=self._settings.poll, found_after=self._found_after,
        )  # fmt: skip
        self._clockwork = asyncio.create_task(self._tick(), name=f"{self.node}-participation")
        try:
            await self._until_trusted()
        except BaseException:
            await self.abandon()
            raise

    async def stop(self) -> None:
        """Stop what runs here, leave the cluster, end all tasks. May be called twice."""
        if self._stopping:
            return
        self._stopping = True
        await self._end_tasks()
        if self._machine is None:
            return
        with contextlib.suppress(PenstockError, TimeoutError):
            async with asyncio.timeout(self._patience):
                await self._hands.stop_executors("the node is stopping")
        if self._machine.trusted(self._clock.monotonic()):
            with contextlib.suppress(ClusterError):
                await self._store.leave(self._machine.incarnation)
        self._changed.set()

    async def abandon(self) -> None:
        """End all tasks without a word to anybody, as a crash would."""
        self._stopping = True
        await self._end_tasks()
        self._changed.set()

    async def _end_tasks(self) -> None:
        await end(self._clockwork, self._last_stand, *self._work)
        await self._file.idle(self._patience)

    async def _until_trusted(self) -> None:
        limit = self._clock.monotonic() + _ARRIVE_FOR_LEASES * self._settings.lease
        while not self.trusted:
            if not belongs(self._there.journal, self.sight.store) and self.sight.store.lineage:
                raise ClusterError(f"node {self.node} cannot join the cluster: {self.problem}")
            left = limit - self._clock.monotonic()
            if left <= 0 or self._broken:
                raise ClusterError(
                    f"node {self.node} could not join the cluster: {self.problem}",
                    remedy="give it another name (--name), or the cluster another one (--cluster)",
                )
            await self._something_changes(left)

    # ---- what others may ask -------------------------------------------------------------------------------------

    @property
    def trusted(self) -> bool:
        """Whether executors may run here."""
        running = self._machine is not None and not self._broken and not self._stopping
        return running and self._there.trusted(self._clock.monotonic())

    @property
    def member(self) -> bool:
        """Whether this node is a member, as far as it knows."""
        return self.trusted and self.sight.store.members.get(self.node) == self.incarnation

    @property
    def ready(self) -> bool:
        """Whether this node is a member and has applied what it last saw."""
        return self.trusted and self._there.ready(self._clock.monotonic())

    @property
    def problem(self) -> str:
        """Why this node is not a member; empty when it is."""
        if self._broken or self._stopping:
            return self._broken or "it is stopping"
        return "it is starting" if self._machine is None else self._machine.problem

    @property
    def incarnation(self) -> int:
        """The latest incarnation of this node."""
        return 0 if self._machine is None else self._machine.incarnation

    @property
    def _there(self) -> Participant:
        assert self._machine is not None
        return self._machine

    def may_judge(self) -> bool:
        """Whether this node, as the leader, may take others for dead at this moment: see `Participant.may_judge`."""
        return self.trusted and self._there.may_judge(self._clock.monotonic())

    def promise(self) -> bool:
        """The answer to a peer that asks by `Hands.ask_peers`. True: this node judges nobody for one lease."""
        asked = self._machine is not None and not self._broken and not self._stopping
        return asked and self._there.promise(self._clock.monotonic())

    def give_up(self, nodes: Collection[str]) -> None:
        """An operator declares that these nodes are gone for good, while the catalogue waits for their journals."""
        self._feed(do.GivenUp(frozenset(nodes)))

    def look_soon(self) -> None:
        """There is a reason to look at once."""
        self._feed(Rang())

    def uploaded(self, digest: str, patience: float) -> None:
        """A package has come with a request, which gives up after `patience` seconds."""
        self._feed(do.Uploaded(digest, patience))

    async def wait_for(self, predicate: Callable[[Sight], bool], seconds: float) -> Sight | None:
        """The first sight for which the predicate holds, also the present one; `None` when there is none in time, or
        when the participation has ended."""
        limit = self._clock.monotonic() + seconds
        while not predicate(self.sight):
            left = limit - self._clock.monotonic()
            if left <= 0 or self._stopping or self._broken:
                return None
            await self._something_changes(left)
        return self.sight

    async def _something_changes(self, seconds: float) -> None:
        changed = self._changed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await changed.wait()

    # ---- events and instructions ---------------------------------------------------------------------------------

    async def _tick(self) -> None:
        interval = self._settings.lease / TICKS
        bell = self._store.bus.bell
        loop = asyncio.get_running_loop()
        self._feed(Tick())
        next_tick = loop.time() + interval
        while not self._broken:
            rang = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_tick):
                    rang = await bell.wait()
            if rang:
                bell.clear()
                self._feed(Rang())
            if loop.time() >= next_tick:
                next_tick = max(next_tick + interval, loop.time())
                self._feed(Tick())

    def _feed(self, event: Event) -> None:
        """Tell the machine, do what it says. An error in here is a bug: the node must not go on as if it were well."""
        if self._machine is None or self._broken or self._stopping:
            return
        again = self._must_look_again(event)
        try:
            for instruction in self._machine.on(event, self._clock.monotonic()):
                self._issue(instruction)
            if isinstance(event, Done) and isinstance(event.instruction, do.Look):
                self._on_sight(self.sight)
            standing = (self.trusted, self._machine.problem)
            if standing != self._told:
                self._told = standing
                self._on_standing(*standing)
        except Exception as error:
            self._break(f"an error in the program, please report it: {type(error).__name__}: {error}")
        if isinstance(event, Done | Failed):
            self._notify()
        if again:
            self._feed(Rang())

    def _must_look_again(self, event: Event) -> bool:
        """Whether the look that has just ended may be older than a reason to look that came while it was under way."""
        if isinstance(event, Done | Failed) and isinstance(event.instruction, do.Look):
            again, self._looking, self._look_again = self._look_again, False, False
            return again and isinstance(event, Done)
        elsewhere = isinstance(event, Done | Failed) and not isinstance(event.instruction, _NO_REASON_TO_LOOK)
        self._look_again = self._look_again or (self._looking and (elsewhere or isinstance(event, Rang)))
        return False

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _issue(self, instruction: Instruction) -> None:
        if isinstance(instruction, do.Cancel):
            if (running := self._preparing.get(instruction.tx)) is not None:
                running.cancel()
            return
        if isinstance(instruction, do.Look):
            self._looking = True
        name = f"{self.node}-{type(instruction).__name__.lower()}"
        task = asyncio.create_task(self._carry_out(instruction), name=name)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        if isinstance(instruction, do.Prepare):
            self._preparing[instruction.tx.id] = task
            task.add_done_callback(lambda _: self._preparing.pop(instruction.tx.id, None))

    async def _carry_out(self, instruction: Instruction) -> None:
        """One instruction; whatever happens is reported once."""
        try:
            answer = await self._effect(instruction)
        except JournalInDoubt as error:
            self._break(str(error))
        except (PenstockError, OSError) as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, TimeoutError):
                reason = "it took too long"
            self._feed(Failed(instruction, reason))
            if isinstance(instruction, do.Offer) and not isinstance(error, BusDown):
                self._feed(Rang())
        except asyncio.CancelledError:
            self._feed(Failed(instruction, "it was cancelled"))
            raise
        except Exception as error:
            self._feed(Failed(instruction, f"an error in the program: {type(error).__name__}: {error}"))
        else:
            self._feed(Done(instruction, answer))

    async def _effect(self, instruction: Instruction) -> Seen | Granted | Promised | None:
        store = self._store
        match instruction:
            case do.Look():
                self.sight = await store.look()
                return Seen(self.sight.store, self.sight.now)
            case do.Arrive(least):
                return Granted(*await store.arrive(self._nonce, least))
            case do.Renew(incarnation):
                return Granted(await store.renew(self._nonce, incarnation), incarnation)
            case do.Offer(journal):
                return await self._offer(journal)
            case do.AskPeers(members):
                return await self._ask_peers(members)
            case do.Admit(incarnation, lineage, rev):
                await store.admit(incarnation, lineage, rev)
            case do.Leave(incarnation, _):
                await store.leave(incarnation)
            case do.Install(based_on, rebuilt):
                await store.install(based_on.offers, rebuilt)
            case do.SendVote(tx, incarnation, yes, reason):
                await store.vote(tx, incarnation, Vote(yes, reason))
            case do.Decide(tx):
                await store.decide(tx)
            case do.Abort(tx, reason):
                await store.abort(tx, reason)
            case do.Finish(tx):
                await store.finish(tx)
            case do.Ack(incarnation, lineage, rev):
                await store.ack(incarnation, lineage, rev)
            case do.Write(journal):
                await self._file.write(journal)  # without a deadline: nobody could say then what is on the disk
            case _:
                await self._by_hand(instruction)
        return None

    async def _offer(self, journal: Journal) -> Granted:
        if await self._store.offer(self._nonce, journal):
            return Granted(Standing.GRANTED, journal.incarnation)
        held = self._store.latest.store.leases.get(self.node)
        if held is not None and held.nonce != self._nonce:
            return Granted(Standing.REFUSED)
        raise ClusterError("the offer was of an earlier loss of memory, or the catalogue is there again")

    async def _ask_peers(self, members: Collection[str]) -> Promised:
        async with asyncio.timeout(self._settings.lease * _ANSWER):
            return Promised(await self._hands.ask_peers(members))

    async def _by_hand(self, instruction: Instruction) -> None:
        hands = self._hands
        work: Awaitable[Any]
        limit = self._patience
        match instruction:
            case do.Prepare(tx):
                work, limit = hands.prepare(tx), tx.timeout / 1000
            case do.Discard(tx_id):
                work = hands.discard(tx_id)
            case do.Apply(entry):
                work = hands.apply(entry)
            case do.StopExecutors(reason):
                work = hands.stop_executors(reason)
            case do.DropUpload(digest):
                work = hands.drop_upload(digest)
            case _:
                raise AssertionError(f"nobody carries out {instruction}")
        async with asyncio.timeout(limit):
            await work

    # ---- the end -------------------------------------------------------------------------------------------------

    def _break(self, problem: str) -> None:
        """Nobody knows what this node would do next: it stops what runs here, leaves, and says so."""
        if self._broken:
            return
        self._broken = problem
        self._notify()
        self._last_stand = asyncio.create_task(self._stand_down(problem), name=f"{self.node}-stand-down")
        with contextlib.suppress(Exception):
            self._on_standing(False, problem)

    async def _stand_down(self, problem: str) -> None:
        await end(*self._work)
        stopped = False
        while not stopped:
            try:
                async with asyncio.timeout(self._patience):
                    await self._hands.stop_executors(problem)
                stopped = True
            except (PenstockError, OSError):
                await asyncio.sleep(_STOP_AGAIN)
        with contextlib.suppress(ClusterError):
            await self._store.leave(self.incarnation)
