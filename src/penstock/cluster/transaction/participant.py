"""One node's part in everything: a pure state machine. Events in, instructions out; no clock, no Redis, no disk.

It has no script of steps to be in the middle of. After every event it compares what it has last seen of the store, what
it has fsynced and what is in effect on this node, and asks for whatever is missing and not under way. So a lost bell, a
repeated look, a restart, or a call that may or may not have had its effect need no code of their own.

The order that carries the promises:

    Prepare -> Write(prepared) -> SendVote(yes)         a yes survives a crash
    see COMMITTING -> Write(decided) -> Finish          a finished transaction survives a loss of the store
    see FINISHED -> Apply -> Write(models) -> Ack       an acknowledgement survives a crash
    journal is current -> Admit, Discard                a member is up to date; what a commit needs is never removed

While the store is away, for everybody, what runs goes on: see `contact`.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from penstock.cluster.transaction import instructions as do
from penstock.cluster.transaction.admission import Standing, admit, known
from penstock.cluster.transaction.contact import Contact
from penstock.cluster.transaction.coordinator import Verdict, lost, verdict
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
from penstock.cluster.transaction.rebuild import Blank, Rebuilt, Unnamed, Waiting, belongs, rebuild, round_of
from penstock.cluster.transaction.records import (
    KEYS_KEPT,
    Entry,
    Journal,
    Phase,
    State,
    Store,
    Tx,
    unlocked,
)

TRUSTED = 2 / 3
"""The share of a lease after which its holder no longer trusts it."""
RENEWALS = 8
"""A lease is renewed so many times within its length."""
QUESTIONS = 20
"""Peers are asked so many times in a lease at most, while they do not promise."""
PATIENCE = 1.5
"""A node that has seen a transaction for so many times its timeout, by its own clock, aborts it."""
WAITS = "it waits until every other node has written down that it is there, and no operation is open"
_LOCAL = (do.Prepare, do.Discard, do.Write, do.Apply, do.StopExecutors, do.DropUpload)
_SINGLE = frozenset({do.Write, do.Offer, do.Install, do.Look, do.StopExecutors, do.Arrive, do.Renew, do.AskPeers})
"""Of these there is only one under way, whatever it says."""
_replace = msgspec.structs.replace


def _key(instruction: Instruction) -> object:
    """Two instructions with one key are never under way together."""
    if isinstance(instruction, do.Prepare):
        return (do.Prepare, instruction.tx.id)
    if isinstance(instruction, do.Apply):
        return (do.Apply, instruction.entry.name)
    return type(instruction) if type(instruction) in _SINGLE else instruction


class Participant:
    """The machine of node `name`.

    `journal` is what the node had fsynced, `staged` the transactions of which something was found on its disk, and
    `lacking` the models of which something is missing there or damaged, when it started. Times are seconds of this
    node's monotonic clock. `lease`: its length. `poll`: the longest time between two looks. `found_after`: a store
    without any catalogue is made a new one after so long, `None`: never. `attempts`: a member that fails so often to
    apply what was committed leaves.
    """

    def __init__(
        self,
        name: str,
        nonce: str,
        journal: Journal | None = None,
        staged: Collection[str] = (),
        lacking: Collection[str] = (),
        *,
        lease: float = 3.0,
        poll: float = 1.0,
        found_after: float | None = None,
        attempts: int = 5,
    ) -> None:
        self.name, self.nonce = name, nonce
        self.journal = journal or Journal(node=name)
        """As it surely is on disk."""
        self.incarnation = self.journal.incarnation
        self.problem = "it has not joined the cluster yet"
        self._lease, self._poll, self._found_after, self._attempts = lease, poll, found_after, attempts
        self._fenced = True
        self._trusted_until = self._renew_at = self._question_at = float("-inf")
        self._contact = Contact(lease)
        self._rounds = 0
        self._given_up: frozenset[str] = frozenset()
        self._seen: Seen | None = None
        self._open: list[Tx] = []
        self._targets: dict[str, Entry] = {}
        """What is to be in effect on this node."""
        self._wanted: tuple[Seen, Journal, Journal] | None = None
        """What `_current_journal` was made from, and what it made."""
        self._look_at = float("-inf")
        self._empty_since: float | None = None
        self.actual: dict[str, Entry] = {
            name: _unknown(name) if name in lacking else _stopped(entry) for name, entry in self.journal.models.items()
        }
        """What is in effect on this node."""
        self._staged = set(staged) | set(self.journal.prepared)
        self._made: set[str] = set()
        """Prepared by this incarnation."""
        self._cancelled: set[str] = set()
        self._failures: dict[str, str] = {}
        self._apply_failures = 0
        self._first_seen: dict[str, float] = {}
        self._uploads: dict[str, float] = {}
        self._under_way: dict[object, float] = {}
        self._held: set[object] = set()
        """Calls that were answered, or failed, since the latest look: not to be repeated before the next. A lease is
        renewed whether anybody looks or not."""
        self._out: list[Instruction] = []

    # ---- what others may ask -------------------------------------------------------------------------------------

    def trusted(self, now: float) -> bool:
        """Whether executors may run here."""
        return not self._fenced and now < self._trusted_until

    def ready(self, now: float) -> bool:
        """Whether this node is a member that has applied what it last saw."""
        return self.trusted(now) and self._member() and self._current()

    def may_judge(self, now: float) -> bool:
        """Whether this node, as the leader, may take others for dead: FORGET, and what ran there starts elsewhere. A
        FORGET that is not at the store within a third of a lease from now must not get there at all."""
        return self.trusted(now) and self._seen is not None and self._contact.may_judge(now)

    def promise(self, now: float) -> bool:
        """The answer to a peer's `AskPeers`. True: this node will judge nobody for one lease."""
        return self._contact.promise(now)

    # ---- events --------------------------------------------------------------------------------------------------

    def on(self, event: Event, now: float) -> list[Instruction]:
        """What to do after `event`, at `now`."""
        self._out = []
        self._expire(now)
        match event:
            case Done(instruction, answer):
                self._done(instruction, answer, now)
            case Failed(instruction, reason):
                self._failed(instruction, reason, now)
            case Rang():
                self._look_at = now
            case do.Uploaded(digest, patience):
                self._uploads[digest] = now + patience
            case do.GivenUp(nodes):
                self._given_up |= nodes
            case Tick():
                self._held = {key for key in self._held if not _is_local(key)}
        self._next(now)
        return self._out

    def _done(self, instruction: Instruction, answer: Seen | Granted | Promised | None, now: float) -> None:
        sent_at = self._under_way.pop(_key(instruction), now)
        if not isinstance(instruction, (*_LOCAL, do.Look, do.Renew, do.AskPeers)):
            self._held.add(_key(instruction))
            self._look_at = now
        match instruction:
            case do.Look():
                assert isinstance(answer, Seen)
                self._saw(answer, now)
            case do.Arrive() | do.Renew() | do.Offer():
                assert isinstance(answer, Granted)
                self._granted(instruction, answer, sent_at, now)
            case do.AskPeers():
                assert isinstance(answer, Promised)
                self._promised(answer.all, sent_at, now)
            case do.Prepare(tx):
                self._made.add(tx.id)
            case do.Write(journal):
                self.journal = journal
            case do.Apply(entry):
                self._apply_failures = 0
                self._has(entry)
            case do.StopExecutors():
                self.actual = {name: _stopped(entry) for name, entry in self.actual.items()}
            case do.Discard(tx_id):
                self._staged.discard(tx_id)
                self._made.discard(tx_id)
                self._cancelled.discard(tx_id)
                self._failures.pop(tx_id, None)
            case do.DropUpload(digest):
                self._uploads.pop(digest, None)
            case _:
                pass

    def _failed(self, instruction: Instruction, reason: str, now: float) -> None:
        self._under_way.pop(_key(instruction), None)
        match instruction:
            case do.Renew():
                self._contact.failed()
                return  # `_renew_at` says when to try again
            case do.AskPeers():
                self._promised(False, now, now)
                return
            case do.Look():
                self._look_at = now + self._poll
                return
            case do.Prepare(tx):
                self._failures[tx.id] = reason or "it could not be prepared"
            case do.Write(journal):
                for tx_id in journal.prepared.keys() - self.journal.prepared.keys():
                    self._failures[tx_id] = f"the journal could not be written: {reason}"
            case do.Apply(entry):
                self._apply_failures += 1
                self.problem = f"{entry.name} could not be applied: {reason}"
                self.actual[entry.name] = _unknown(entry.name)
            case _:
                pass
        self._held.add(_key(instruction))

    def _has(self, entry: Entry) -> None:
        if entry.generation:
            self.actual[entry.name] = entry
        else:
            self.actual.pop(entry.name, None)

    def _saw(self, seen: Seen, now: float) -> None:
        if self._seen is None or self._seen.store.lineage != seen.store.lineage:
            self._contact.begins(now)
        self._seen = seen
        self._held.clear()
        self._look_at = now + self._poll
        self._targets = {name: unlocked(e) for name, e in seen.store.models.items() if e.generation}
        if seen.store.lineage:
            self._empty_since, self._given_up = None, frozenset()
        elif self._empty_since is None:
            self._empty_since = now
        self._open = seen.store.open()
        self._first_seen = {tx.id: self._first_seen.get(tx.id, now) for tx in self._open}

    # ---- the lease -----------------------------------------------------------------------------------------------

    def _granted(self, asked: do.Arrive | do.Renew | do.Offer, said: Granted, sent_at: float, now: float) -> None:
        if isinstance(asked, do.Renew) and (self._fenced or asked.incarnation != self.incarnation):
            return
        if said.standing is Standing.GRANTED or said.standing is Standing.REVIVED:
            goes_on = isinstance(asked, do.Renew) and said.standing is Standing.GRANTED
            self._contact.granted(now, goes_on=goes_on)
            self._fenced = False
            self.incarnation = said.incarnation
            self._trusted_until = max(self._trusted_until, sent_at + TRUSTED * self._lease)
            self._renew_at = sent_at + self._lease / RENEWALS
        elif said.standing is Standing.EMPTY:
            self._renew_at = now + self._lease / RENEWALS
            self._look_at = now
        elif isinstance(asked, do.Renew):
            self._fence("its membership ended: it was taken for dead")
        else:
            self.problem = f"another process named {self.name!r} has its lease"

    def _promised(self, all_: bool, sent_at: float, now: float) -> None:
        """What counts is when the question was sent: the promises were given later, and last for a whole lease."""
        self._question_at = max(now, sent_at + self._lease / QUESTIONS)
        if all_ and not self._fenced:
            self._question_at = now + self._lease / RENEWALS
            self._trusted_until = max(self._trusted_until, sent_at + TRUSTED * self._lease)

    def _judges(self) -> frozenset[str]:
        """Who could take this node for dead. A newcomer judges only when it is a member, and becomes one only when this
        node has named it."""
        named = frozenset(self.journal.members)
        return named if self._seen is None else named | self._seen.store.members.keys() | self._seen.store.expected

    def _suspend(self, now: float) -> None:
        """The store is away. If that is so for everybody, nobody judges, and what runs here may go on."""
        judges = self._judges()
        if self.name not in judges:
            return
        if judges == {self.name}:
            self._promised(True, now, now)
        else:
            self._ask(do.AskPeers(judges - {self.name}), now)

    def _expire(self, now: float) -> None:
        if not self._fenced and now >= self._trusted_until:
            self._fence("the lease could not be renewed in time")

    def _fence(self, reason: str) -> None:
        self._fenced, self.problem = True, reason
        self._trusted_until = float("-inf")
        self._made.clear()
        self._ask(do.StopExecutors(reason))

    def _keep_lease(self, now: float) -> None:
        if not self._fenced:
            if now >= self._renew_at:
                self._renew_at = now + self._lease / RENEWALS
                self._ask(do.Renew(self.incarnation), now)
            if now >= self._question_at and self._contact.doubts(now):
                self._suspend(now)
        elif self._quiet() and self._seen is not None and self._seen.store.lineage:
            self._ask(do.Arrive(self.incarnation), now)

    def _quiet(self) -> bool:
        """Whether nothing of users runs here or is about to; a fenced node stops again until it is so."""
        if any(entry.state is State.ONLINE for entry in self.actual.values()):
            self._ask(do.StopExecutors(self.problem))
        return not any(key is do.StopExecutors or _is_apply(key) for key in self._under_way)

    # ---- what is missing -----------------------------------------------------------------------------------------

    def _ask(self, instruction: Instruction, now: float = 0.0) -> None:
        key = _key(instruction)
        if key not in self._under_way and key not in self._held:
            self._under_way[key] = now
            self._out.append(instruction)

    def _next(self, now: float) -> None:
        if now >= self._look_at and do.Offer not in self._under_way:
            self._ask(do.Look(), now)
        store = self._seen.store if self._seen is not None else None
        if store is not None and not belongs(self.journal, store) and store.lineage:
            self.problem = "this node belongs to another catalogue: give it an empty data directory, or another --redis"
            if not self._fenced:
                self._ask(do.Leave(self.incarnation, self.problem))
                self._fence(self.problem)
            return
        self._keep_lease(now)
        self._drop_uploads(now)
        if self._seen is None or store is None:
            return
        if not store.lineage:
            self._offer(store, now)
        elif not self._fenced:
            for tx in self._open:
                self._take_part(self._seen, tx, now)
            self._synchronise(self._seen)
            self._tidy(store)

    def _member(self) -> bool:
        return self._seen is not None and self._seen.store.members.get(self.name) == self.incarnation

    def _offer(self, store: Store, now: float) -> None:
        if do.Write in self._under_way or do.Look in self._under_way or (self._fenced and not self._quiet()):
            return  # what is offered must be what is on disk, and stay so
        incarnation = self.incarnation + 1 if self._fenced else self.incarnation
        own = _replace(self.journal, incarnation=incarnation, round=round_of(store))
        if not store.offers:
            self._rounds += 1
            own = _replace(own, round=f"{self.nonce}/{self._rounds}", opens=True)
        leased = self._seen is not None and store.live(self.name, self._seen.now) is not None
        if self._fenced or not leased or store.offers.get(self.name) != own:
            self._ask(do.Offer(own), now)
            return
        match rebuild(store.offers, self._given_up):
            case Rebuilt() as rebuilt:
                self._ask(do.Install(store, rebuilt))
            case Blank():
                since = self._empty_since if self._empty_since is not None else now
                if self._found_after is not None and now >= since + self._found_after:
                    self._ask(do.Install(store, None))
            case Unnamed(names):
                if not names <= set(self.journal.members):
                    self._ask(do.Write(_replace(self.journal, members=tuple(sorted(names)))))
            case Waiting(missing):
                self.problem = f"the catalogue waits for the journals of {', '.join(sorted(missing))}"

    def _take_part(self, seen: Seen, tx: Tx, now: float) -> None:
        if tx.phase is Phase.COMMITTING:
            self._finish(seen, tx)
        elif verdict(seen.store, seen.now, tx)[0] is not Verdict.WAIT:
            self._ask(do.Decide(tx.id))
        elif now - self._first_seen.get(tx.id, now) > PATIENCE * tx.timeout / 1000:
            self._ask(do.Abort(tx.id, "it was not decided in time"))
        elif self._member() and tx.participants.get(self.name) == self.incarnation and self.name not in tx.votes:
            self._prepare(tx)

    def _prepare(self, tx: Tx) -> None:
        name = tx.operation.model
        if tx.id in self._failures:
            self._ask(do.SendVote(tx.id, self.incarnation, False, self._failures[tx.id]))
        elif tx.id not in self._made:
            if self.actual.get(name) == self._targets.get(name):
                self._staged.add(tx.id)
                self._ask(do.Prepare(tx))
        elif tx.id not in self.journal.prepared:
            self._ask(do.Write(_replace(self.journal, prepared={**self.journal.prepared, tx.id: _bare(tx)})))
        else:
            self._ask(do.SendVote(tx.id, self.incarnation, True))

    def _finish(self, seen: Seen, tx: Tx) -> None:
        """Only a participant finishes, as only their journals are surely asked for when the store is rebuilt; anybody
        when all of them are gone."""
        store = seen.store
        orphaned = len(lost(store, tx)) == len(tx.participants)
        if self.journal.lineage != store.lineage or not (self.name in tx.participants or orphaned):
            return
        if tx.id in self.journal.decided:
            self._ask(do.Finish(tx.id))
        else:
            self._ask(do.Write(_replace(self.journal, decided={**self.journal.decided, tx.id: _bare(tx)})))

    # ---- becoming what the catalogue says ------------------------------------------------------------------------

    def _synchronise(self, seen: Seen) -> None:
        if do.StopExecutors in self._under_way:
            return
        if self.actual != self._targets:
            self._catch_up()
            return
        store, wanted = seen.store, self._current_journal(seen)
        if wanted is not self.journal:
            if self.journal.lineage == store.lineage or known(store, seen.now, self.name):
                self._ask(do.Write(wanted))
            else:
                self.problem = WAITS
            return
        lease = store.leases.get(self.name)
        if lease is None or lease.incarnation != self.incarnation:
            return
        if lease.applied < store.rev:
            self._ask(do.Ack(self.incarnation, store.lineage, store.rev))
        if self._member():
            self.problem = ""
        elif admit(store, seen.now, self.name, self.incarnation, store.lineage, store.rev)[1]:
            self._ask(do.Admit(self.incarnation, store.lineage, store.rev))
        else:
            self.problem = WAITS

    def _catch_up(self) -> None:
        behind = [name for name, entry in self._targets.items() if self.actual.get(name) != entry]
        extra = [name for name in self.actual if name not in self._targets]
        for name in behind:
            self._ask(do.Apply(self._targets[name]))
        for name in extra:
            self._ask(do.Apply(Entry(name=name, generation=0, state=State.DELETED)))
        if self._apply_failures >= self._attempts and self._member():
            self._ask(do.Leave(self.incarnation, self.problem))
            self._fence(self.problem)

    def _current_journal(self, seen: Seen) -> Journal:
        """The journal of a node on which the catalogue is in effect."""
        known = self._wanted
        if known is not None and known[0] is seen and known[1] is self.journal:
            return known[2]
        store = seen.store
        open_ = {tx.id for tx in self._open}
        keys = dict(self.journal.keys)
        keys.update({tx.key: _bare(tx) for tx in store.txs.values() if tx.key and tx.phase is Phase.FINISHED})
        wanted = Journal(
            node=self.name,
            lineage=store.lineage,
            rev=store.rev,
            models=self._targets,
            prepared={key: tx for key, tx in self.journal.prepared.items() if key in open_},
            decided={key: tx for key, tx in self.journal.decided.items() if key in open_},
            members=tuple(sorted(store.named(seen.now))),
            incarnation=self.incarnation,
            keys=dict(list(keys.items())[-KEYS_KEPT:]),
        )
        if wanted == self.journal:
            wanted = self.journal
        self._wanted = (seen, self.journal, wanted)
        return wanted

    def _current(self) -> bool:
        """Whether the journal is a copy of the catalogue as last seen, and all of it is in effect."""
        if self._seen is None:
            return False
        store = self._seen.store
        known = (self.journal.lineage, self.journal.rev) == (store.lineage, store.rev)
        return known and self.actual == self._targets

    def _tidy(self, store: Store) -> None:
        """Remove what transactions that have ended left behind. What was committed stays until it is in effect: this
        may be the only copy in the cluster."""
        for tx_id in sorted(self._staged):
            tx = store.txs.get(tx_id)
            if tx is not None and tx.open:
                continue
            if (do.Prepare, tx_id) in self._under_way:
                if tx_id not in self._cancelled:
                    self._cancelled.add(tx_id)
                    self._out.append(do.Cancel(tx_id))
            elif self._current() or (tx is not None and tx.phase is Phase.ABORTED):
                self._ask(do.Discard(tx_id))

    def _drop_uploads(self, now: float) -> None:
        if not self._uploads:
            return
        txs = self._seen.store.txs.values() if self._seen is not None else ()
        needed = {tx.operation.digest for tx in txs if tx.open}
        for digest, until in sorted(self._uploads.items()):
            if now >= until and digest not in needed:
                self._ask(do.DropUpload(digest))


def _bare(tx: Tx) -> Tx:
    """A transaction as journals keep it."""
    return _replace(tx, votes={}, acks=frozenset()) if tx.votes or tx.acks else tx


def _stopped(entry: Entry) -> Entry:
    return _replace(entry, state=State.OFFLINE) if entry.state is State.ONLINE else entry


def _unknown(name: str) -> Entry:
    """What is in effect after a failure: nobody knows, something may run."""
    return Entry(name=name, generation=-1, state=State.ONLINE)


def _is_apply(key: object) -> bool:
    return isinstance(key, tuple) and key[0] is do.Apply


def _is_local(key: object) -> bool:
    return key in (do.Write, do.StopExecutors) or isinstance(key, (tuple, do.Discard, do.DropUpload))
