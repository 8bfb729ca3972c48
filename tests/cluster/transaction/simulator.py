"""A cluster in one thread: participants, a store, clients, and everything that can go wrong, all from one seed.

The store is one immutable value that the rules of `penstock.cluster.transaction` replace. A host is a machine: its disk
survives a crash, its processes and its participant do not. Every call to the store may be slow, fail before it has its
effect, or have its effect and then fail. `simulate(seed)` runs a stormy time and then a calm one, in which the cluster
has to come to rest; `Violation` tells what is broken.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter

import msgspec
from tests.cluster.transaction.hosts import Client, Host, Violation
from tests.cluster.transaction.trouble import CALM, FAULTS, LEASE, POLL, STORM, TICK, Trouble

from penstock.cluster.transaction import admission, coordinator, instructions, invariants, participant, rebuild
from penstock.cluster.transaction.answers import Pending, RolledBack, answer
from penstock.cluster.transaction.coordinator import Request
from penstock.cluster.transaction.preconditions import Refusal, Why
from penstock.cluster.transaction.records import (
    Entry,
    Journal,
    Kind,
    Operation,
    Phase,
    State,
    Store,
    Tx,
    Vote,
    unlocked,
)

do = instructions


class World(Trouble):
    """See the module."""

    def __init__(self, seed: int, faults: set[str] | None = None, hosts: int = 0) -> None:
        self.rng = rng = random.Random(seed)
        self.now = 0.0
        self.store = Store()
        self.shift = 0
        self.down_until = 0.0
        self.stormy = True
        self.jumped = False
        self.shifted_at = float("-inf")
        self.faults = {f for f in FAULTS if rng.random() < 0.35} if faults is None else faults
        if "retire" in self.faults:
            self.faults -= {"flush"}
        self.length = STORM + (3 * LEASE if "away" in self.faults else 0)
        self.call_fails = 0.08 if "calls" in self.faults else 0.0
        self.bells = rng.choice((1.0, 0.7, 0.0))
        self.heap: list[tuple[float, int, object, tuple[object, ...]]] = []
        self.count = 0
        self.stats: Counter[str] = Counter()
        self.finished: dict[str, Entry] = {}
        self.latest: dict[str, Entry] = {}
        self.earlier: dict[str, Entry] = {}
        """What a transaction had made before a loss of memory that nobody had written down."""
        self.archived: dict[str, Tx] = {}
        self.aborted: set[str] = set()
        self.hosts = {
            f"n{i}": Host(f"n{i}", drift=rng.choice((1.0, 0.95, 1.05)))
            for i in range(hosts or rng.choice((2, 3, 3, 4)))
        }
        self.retired: set[str] = set()
        self.clients: list[Client] = []

    # ---- time ----------------------------------------------------------------------------------------------------

    def after(self, delay, what, *args):
        self.count += 1
        heapq.heappush(self.heap, (self.now + delay, self.count, what, args))

    def run(self, until):
        while self.heap and self.heap[0][0] <= until:
            self.now, _, what, args = heapq.heappop(self.heap)
            what(*args)
        self.now = until

    @property
    def time(self):
        return int(self.now * 1000) + self.shift

    # ---- the store -----------------------------------------------------------------------------------------------

    def call(self, script, *args):
        """Run a script, check what it did, ring the bell."""
        before = self.store
        after, said = script(before, self.time, *args)
        if after is not before:
            self.store = after
            broken = list(invariants.store(after))
            if before.lineage == after.lineage:
                broken += invariants.change(before, after, self.time)
            self.fail(broken)
            self.note(before, after)
            for host in self.hosts.values():
                if host.machine is not None and self.rng.random() < self.bells:
                    self.after(self.rng.uniform(0.001, 0.3), self.tell, host, host.process, do.Rang())
        return said

    def fail(self, broken):
        if broken:
            raise Violation(f"at {self.now:.3f}: " + "; ".join(broken))

    def note(self, before, after):
        if before.lineage != after.lineage and before.lineage == ():
            self.note_rebuilt(after)
        if before.txs is after.txs:
            return
        for tx in after.txs.values():
            old = before.txs.get(tx.id)
            if old is tx or (old is not None and old.phase is tx.phase):
                continue
            self.stats[tx.phase.value] += 1
            if tx.phase is Phase.FINISHED and before.lineage:
                self.fail([f"{tx.id} was aborted and is finished"] if tx.id in self.aborted else [])
                entry = unlocked(after.models[tx.operation.model])
                self.finished[tx.id] = self.latest[entry.name] = entry
            elif tx.phase is Phase.ABORTED:
                self.aborted.add(tx.id)

    def note_rebuilt(self, after):
        self.stats["rebuilt"] += bool(self.latest)
        for name, entry in self.latest.items():
            now = after.models.get(name)
            if (
                now is None
                or now.generation < entry.generation
                or (now != entry and now.generation == entry.generation)
            ):
                raise Violation(f"the rebuilt catalogue has lost {entry.tx} of {name}")
        for name, entry in after.models.items():
            if self.latest.get(name) != entry:
                again = name in self.latest and self.latest[name].tx == entry.tx  # with another generation
                if entry.tx in self.aborted or (entry.tx in self.finished and not again):
                    raise Violation(f"the rebuilt catalogue has brought back {entry.tx} of {name}")
                if again:
                    self.earlier[entry.tx] = self.latest[name]
                self.finished[entry.tx] = self.latest[name] = entry
                self.stats["committed by rebuilding"] += not again

    # ---- hosts ---------------------------------------------------------------------------------------------------

    def start(self, host):
        host.process += 1
        host.machine = participant.Participant(
            host.name,
            f"{host.name}/{host.process}",
            host.journal,
            list(host.staged),
            lease=LEASE,
            poll=POLL,
            found_after=2.0 if host.founder else None,
            attempts=3,
        )
        host.paused_until = 0.0
        self.tick(host, host.process)

    def crash(self, host, back=None):
        if host.machine is None:
            return
        self.stats["crashes"] += 1
        host.machine = None
        host.process += 1
        host.uploads.clear()
        host.warm.clear()
        host.running.clear()
        if back is not None:
            self.after(back, self.restart, host)

    def restart(self, host):
        if host.machine is None and host.name not in self.retired:
            self.start(host)

    def tick(self, host, process):
        if host.process == process and host.machine is not None:
            self.tell(host, process, do.Tick())
            self.after(TICK * self.rng.uniform(0.8, 1.2), self.tick, host, process)

    def tell(self, host, process, event):
        if host.process != process or host.machine is None:
            return
        if host.paused_until > self.now:
            self.after(host.paused_until - self.now + self.rng.uniform(0, 0.01), self.tell, host, process, event)
            return
        for instruction in host.machine.on(event, self.now * host.drift):
            self.issue(host, instruction)

    def slow(self):
        """Seconds until something happens."""
        rng = self.rng
        if self.stormy and "slow" in self.faults and rng.random() < 0.03:
            return rng.uniform(0.2, 2.5)
        return rng.uniform(0.001, 0.05)

    def issue(self, host, instruction):
        if isinstance(instruction, do.Cancel):
            self.stats["cancelled"] += 1
        elif isinstance(instruction, LOCAL):
            if isinstance(instruction, do.Prepare):
                host.staged.setdefault(instruction.tx.id, "")
            delay = self.slow()
            if (
                isinstance(instruction, do.Prepare)
                and self.stormy
                and "late" in self.faults
                and self.rng.random() < 0.3
            ):
                delay = self.rng.uniform(1, 8)
            self.after(delay, self.local, host, host.process, instruction)
        else:
            self.after(self.slow(), self.remote, host, host.process, instruction)

    def remote(self, host, process, instruction):
        if isinstance(instruction, do.AskPeers):
            self.ask_peers(host, process, instruction)
            return
        fails = self.stormy and self.rng.random() < self.call_fails
        if self.away(host) or (fails and self.rng.random() < 0.5):
            self.after(self.silence(), self.tell, host, process, do.Failed(instruction, "no answer"))
            if fails and "stale" in self.faults:
                self.after(self.rng.uniform(0.1, 4.0), self.effect, host, instruction, process)
            return
        said = self.effect(host, instruction, process)
        event = do.Failed(instruction, "no answer") if fails else do.Done(instruction, said)
        self.after(self.slow(), self.tell, host, process, event)

    def effect(self, host, instruction, process):
        name, nonce, lease = host.name, f"{host.name}/{process}", int(LEASE * 1000)
        match instruction:
            case do.Look():
                return do.Seen(self.store, self.time)
            case do.Arrive(least):
                return do.Granted(*self.call(admission.arrive, name, nonce, lease, least))
            case do.Renew(incarnation):
                return do.Granted(self.call(admission.renew, name, nonce, lease, incarnation), incarnation)
            case do.Admit(incarnation, lineage, rev):
                self.call(admission.admit, name, incarnation, lineage, rev)
            case do.Leave(incarnation, _):
                self.stats["left"] += 1
                self.call(admission.leave, name, incarnation)
            case do.Offer(journal):
                granted = self.call(rebuild.offer, nonce, lease, journal)
                standing = admission.Standing.GRANTED if granted else admission.Standing.REFUSED
                return do.Granted(standing, journal.incarnation)
            case do.Install(based_on, rebuilt):
                self.call(rebuild.install, based_on.offers, f"l{self.count}", rebuilt)
            case do.SendVote(tx, incarnation, yes, reason):
                self.call(coordinator.vote, tx, name, incarnation, Vote(yes, reason))
            case do.Decide(tx):
                self.call(coordinator.decide, tx)
            case do.Abort(tx, reason):
                self.call(coordinator.abort, tx, reason)
            case do.Finish(tx):
                self.call(coordinator.finish, tx)
            case do.Ack(incarnation, lineage, rev):
                self.call(coordinator.ack, name, incarnation, lineage, rev)
        return None

    def local(self, host, process, instruction):
        if host.process != process:
            return
        if host.paused_until > self.now:
            self.after(host.paused_until - self.now, self.local, host, process, instruction)
            return
        try:
            self.carry_out(host, instruction)
        except OSError as error:
            self.tell(host, process, do.Failed(instruction, str(error)))
        else:
            self.after(self.slow(), self.tell, host, process, do.Done(instruction))

    def carry_out(self, host, instruction):
        chance = self.rng.random() if self.stormy else 1.0
        match instruction:
            case do.Prepare(tx):
                if "refuse" in self.faults and chance < 0.15:
                    raise OSError("no space left")
                operation = tx.operation
                if operation.digest and not self.found(operation.digest):
                    raise OSError("nobody has the package")
                host.staged[tx.id] = operation.digest or "-"
                if operation.kind is Kind.ONLINE:
                    host.warm.add(tx.id)
            case do.Discard(tx):
                host.staged.pop(tx, None)
                host.warm.discard(tx)
            case do.Write(journal):
                if "refuse" in self.faults and chance < 0.03:
                    raise OSError("no space left")
                host.journal = journal
            case do.Apply(entry):
                if "apply" in self.faults and chance < 0.3:
                    raise OSError("input/output error")
                self.apply(host, entry)
                if "apply" in self.faults and 0.95 < chance < 1.0:
                    raise OSError("failed at the last moment")
            case do.StopExecutors():
                self.stats["stopped"] += 1
                host.running.clear()
                host.warm.clear()
            case do.DropUpload(digest):
                host.uploads.discard(digest)

    def found(self, digest):
        return any(other.holds(digest) for other in self.hosts.values())

    def apply(self, host, entry):
        if self.earlier.get(entry.tx) != entry:
            self.fail(list(invariants.serving(entry.name, entry, self.finished)))
        if entry.tx in self.aborted:
            raise Violation(f"{host.name} applies {entry.tx}, which was aborted")
        if entry.state is State.DELETED:
            host.running.pop(entry.name, None)
            host.library.pop(entry.name, None)
            return
        if not self.found(entry.digest):
            raise OSError("nobody has the package")
        had = host.library.get(entry.name, set())
        host.library[entry.name] = {entry.digest} | {v.digest for v in entry.history if v.digest in had}
        if entry.state is State.OFFLINE:
            host.running.pop(entry.name, None)
        elif not host.machine.trusted(self.now * host.drift):
            raise OSError("the gate may not be opened")
        else:
            host.warm.discard(entry.tx)
            host.running[entry.name] = entry

    # ---- clients -------------------------------------------------------------------------------------------------

    def submit(self, operation, at, timeout=None):
        """A client asks node `at`."""
        number = len(self.clients)
        timeout = timeout or self.rng.choice((1500, 5000) if self.faults else (8000,))
        client = Client(Request(id=f"t{number}", operation=operation, by=at, timeout=timeout, key=f"k{number}"))
        self.clients.append(client)
        if operation.digest:
            host = self.hosts[at]
            if host.machine is None:
                return
            host.uploads.add(operation.digest)
            self.tell(host, host.process, do.Uploaded(operation.digest, 3.0))
        self.after(self.slow(), self.ask, client)

    def ask(self, client):
        rng = self.rng
        client.calls += 1
        if client.calls > 400:
            return
        fails = self.stormy and rng.random() < self.call_fails
        if self.away(self.hosts[client.request.by]) or (fails and rng.random() < 0.5):
            self.after(0.4, self.ask, client)
            return
        if not client.tx:
            request = msgspec.structs.replace(client.request, id=f"{client.request.id}.{client.calls}")
            said = self.call(self.begin, request)
            if fails:
                client.request = msgspec.structs.replace(client.request, by=rng.choice(list(self.hosts)))
            elif isinstance(said, str):
                client.tx = said
            elif said.why is not Why.UNAVAILABLE or client.calls > 8:
                self.stats["refused"] += 1
                client.first = said
                return
        else:
            tx = self.store.txs.get(client.tx) or self.archived.get(client.tx)
            if tx is None:
                client.tx = ""  # the store has lost its memory: ask again with the same key
            else:
                said = answer(self.store, self.time, tx)
                if not isinstance(said, Pending):
                    client.first = said
                    self.check_answer(tx, said)
                    return
        self.after(0.3, self.ask, client)

    def begin(self, store, now, request):
        """BEGIN, shown the archived transaction of its key."""
        tx = next((tx for tx in self.archived.values() if tx.key == request.key), None)
        if tx is None:
            return coordinator.begin(store, now, request)
        replace = msgspec.structs.replace
        shown = replace(store, txs={**store.txs, tx.id: tx}, keys={**store.keys, tx.key: tx.id})
        after, said = coordinator.begin(shown, now, request)
        return (store if after is shown else after), said

    def check_answer(self, tx, said):
        if isinstance(said, RolledBack):
            self.stats["rolled back"] += 1
            self.fail([f"{tx.id} was answered as rolled back"] if tx.id in self.finished else [])
            return
        self.stats["done"] += 1
        for node in self.store.members:
            journal = self.hosts[node].journal
            if journal is None or journal.rev < said.rev:
                raise Violation(f"{tx.id} was answered as done, and {node} does not have it")

    def propose(self):
        """An operation that mostly is possible at this moment."""
        rng = self.rng
        name = rng.choice(("g/a", "g/b"))
        entry = self.store.models.get(name)
        state = State.DELETED if entry is None else entry.state
        kinds = {
            State.DELETED: (Kind.ADD,),
            State.OFFLINE: (Kind.ONLINE, Kind.ONLINE, Kind.UPDATE, Kind.UPDATE, Kind.DELETE),
            State.ONLINE: (Kind.OFFLINE,),
        }[state]
        kind = rng.choice(tuple(Kind) if rng.random() < 0.1 else kinds)
        digest = f"d{rng.randrange(10**6)}" if kind in (Kind.ADD, Kind.UPDATE) else ""
        self.submit(Operation(kind=kind, model=name, digest=digest), rng.choice(list(self.hosts)))
        if rng.random() < 0.15:
            self.submit(Operation(kind=kind, model=name, digest=digest), rng.choice(list(self.hosts)))

    # ---- the whole -----------------------------------------------------------------------------------------------

    def inherit(self, *states):
        """A cluster that was there before: two models, on every disk."""
        states = states or [self.rng.choice(list(State)) for _ in range(2)]
        models, files = {}, {}
        for i, name in enumerate(("g/a", "g/b")):
            digest = "" if states[i] is State.DELETED else f"s{i}"
            models[name] = Entry(name=name, generation=i + 1, state=states[i], tx=f"s{i}", digest=digest)
            if digest:
                files[name] = digest
        self.finished = {entry.tx: entry for entry in models.values()}
        self.latest = dict(models)
        self.store = Store(lineage=("l0",), rev=2, models=models)
        for name, host in self.hosts.items():
            host.library = {model: {digest} for model, digest in files.items()}
            host.journal = Journal(
                node=name, lineage=("l0",), rev=2, models=models, members=tuple(self.hosts), incarnation=1
            )

    def up(self, wait=True):
        """Start everything; `wait` until all are members, or else now and then."""
        if not self.store.lineage and self.rng.random() < 0.8:
            self.inherit()
        self.stormy = False
        for host in self.hosts.values():
            self.after(self.rng.uniform(0, 0.1), self.start, host)
        self.lead()
        if wait or not self.store.lineage or self.rng.random() < 0.2:
            self.rest()
        else:
            self.run(0.5)
        self.stormy = True

    def storm(self):
        rng, start = self.rng, self.now
        self.propose()
        for _ in range(rng.randrange(4, 8)):
            self.after(rng.uniform(0, self.length), self.propose)
        for _ in range(rng.randrange(1, 5)):
            self.after(rng.uniform(0, STORM), self.trouble)
        self.run(start + self.length)

    def rest(self):
        """The calm time: everything is up again, nothing fails, and the cluster comes to rest."""
        self.stormy = False
        self.bells = max(self.bells, 0.0)
        for host in self.hosts.values():
            host.paused_until = min(host.paused_until, self.now)
            self.restart(host)
        limit = self.now + CALM
        broken = ["nothing was looked at"]
        while broken and self.now < limit:
            self.run(self.now + 0.8)
            broken = self.restless()
        self.fail(broken)

    def restless(self):
        there = {n: h for n, h in self.hosts.items() if n not in self.retired}
        if not self.store.lineage:
            return ["there is no catalogue"]
        if any(c.first is None and c.calls for c in self.clients):
            return ["a client has no answer"]
        if any(h.machine is None for h in there.values()):
            return ["a host is down"]
        broken = list(invariants.at_rest(self.store, {n: h.machine.actual for n, h in there.items()}))
        online = {n: e for n, e in self.store.models.items() if e.state is State.ONLINE}
        for name, host in there.items():
            machine = host.machine
            if not machine.ready(self.now * host.drift):
                broken.append(f"{name} is not ready: {machine.problem}")
            if host.running != online:
                broken.append(f"{name} runs {sorted(host.running)}, not {sorted(online)}")
            if host.staged or host.warm or host.uploads:
                broken.append(f"{name} has left {host.staged} {host.warm} {host.uploads}")
            for model, entry in self.store.models.items():
                if entry.state is not State.DELETED and entry.digest not in host.library.get(model, ()):
                    broken.append(f"{name} does not have the files of {model}")
            if host.library.keys() - {n for n, e in self.store.models.items() if e.state is not State.DELETED}:
                broken.append(f"{name} has files of models that are gone")
            journal = host.journal
            if journal is None or journal.prepared or journal.decided or journal.models != self.store.models:
                broken.append(f"the journal of {name} is not up to date")
        return broken

    def repeat_keys(self):
        """Every key gives its first answer again."""
        for client in self.clients:
            if isinstance(client.first, Refusal) or client.first is None:
                continue
            member = next(iter(self.store.members))
            if isinstance(client.first, RolledBack) and self.stats["flushes"]:
                continue
            request = msgspec.structs.replace(client.request, id="again", by=member)
            said = self.begin(self.store, self.time, request)[1]
            if said != client.first.tx:
                raise Violation(f"{client.request.key} gave {client.first.tx} first, and {said} later")


LOCAL = (do.Prepare, do.Discard, do.Write, do.Apply, do.StopExecutors, do.DropUpload)


def simulate(seed, faults=None, hosts=0):
    """Run one seed; its statistics."""
    world = World(seed, faults, hosts)
    world.up(wait=False)
    world.storm()
    world.rest()
    world.repeat_keys()
    return world.stats
