"""A small cluster in one process: real Redis, real journals, hands that only pretend."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

from tests.cluster.catalogue_in_redis import settings

from penstock.clock import SystemClock
from penstock.cluster.bus import Bus, BusDown
from penstock.cluster.local_journal import LocalJournal
from penstock.cluster.participation import Participation
from penstock.cluster.store import CatalogueStore
from penstock.cluster.transaction import invariants
from penstock.cluster.transaction.answers import Pending, answer
from penstock.cluster.transaction.coordinator import Request
from penstock.cluster.transaction.preconditions import Refusal
from penstock.cluster.transaction.records import Kind, Operation, State
from penstock.errors import PenstockError

DEADLINE = 30.0
IDS = itertools.count()


class CheckedStore(CatalogueStore):
    """Checks the invariants at every change."""

    broken: list[str]

    async def _write(self, sight, now, after, until):
        done = await super()._write(sight, now, after, until)
        if done and after is not sight.store:
            self.broken += invariants.store(after)
            if sight.store.lineage == after.lineage:
                self.broken += invariants.change(sight.store, after, now)
        return done


class Hands:
    """A machine with a disk (`packages`, `in_staging`) and processes (`warm`, `running`)."""

    def __init__(self, cluster, name):
        self.cluster, self.name = cluster, name
        self.in_staging: dict[str, str] = {}
        self.packages: set[str] = set()
        self.uploads: set[str] = set()
        self.warm: set[str] = set()
        self.running: dict[str, object] = {}
        self.refuses: dict[str, str] = {}
        self.slow: dict[str, float] = {}
        self.cancelled: list[str] = []
        self.stopped: list[str] = []
        self.apply_fails = 0

    def staged(self):
        return set(self.in_staging)

    def lacking(self, models):
        return ()

    async def prepare(self, tx):
        model = tx.operation.model
        self.in_staging[tx.id] = ""
        try:
            await asyncio.sleep(self.slow.get(model, 0))
        except asyncio.CancelledError:
            self.cancelled.append(tx.id)
            raise
        if model in self.refuses:
            raise PenstockError(self.refuses[model])
        digest = tx.operation.digest
        if digest and not self.cluster.somebody_has(digest):
            raise PenstockError(f"nobody has {digest}")
        self.in_staging[tx.id] = digest
        if tx.operation.kind is Kind.ONLINE:
            self.warm.add(tx.id)

    async def discard(self, tx_id):
        self.in_staging.pop(tx_id, None)
        self.warm.discard(tx_id)

    async def apply(self, entry):
        if self.apply_fails:
            self.apply_fails -= 1
            raise PenstockError("the disk is tired")
        if entry.state is State.DELETED:
            self.running.pop(entry.name, None)
            return
        if not self.cluster.somebody_has(entry.digest):
            raise PenstockError(f"nobody has {entry.digest}")
        self.packages.add(entry.digest)
        if entry.state is State.ONLINE:
            self.warm.discard(entry.tx)
            self.running[entry.name] = entry
        else:
            self.running.pop(entry.name, None)

    async def stop_executors(self, reason):
        self.stopped.append(reason)
        self.running.clear()
        self.warm.clear()

    async def drop_upload(self, digest):
        self.uploads.discard(digest)

    async def ask_peers(self, members):
        return all(self.cluster.nodes[name].promises() for name in members)


class Node:
    """One machine; its process can be killed and started again."""

    def __init__(self, cluster, name):
        self.cluster, self.name = cluster, name
        self.hands = Hands(cluster, name)
        self.bus = self.store = self.participation = None

    async def start(self, **changes):
        cluster = self.cluster
        self.bus = Bus(cluster.url, settings(cluster.prefix, **{**cluster.changes, **changes}))
        await self.bus.start()
        self.store = CheckedStore(
            self.bus,
            self.name,
            round(self.bus.settings.lease * 1000),
            lambda: {"address": f"http://{self.name}"},
            replicas=cluster.replicas,
        )
        self.store.broken = cluster.broken
        self.participation = Participation(
            self.name,
            self.store,
            LocalJournal(cluster.directory / self.name / "journal"),
            self.hands,
            SystemClock(),
            self.bus.settings,
            found_after=0.2,
        )
        try:
            await self.participation.start()
        except BaseException:
            await self.kill()
            raise

    @property
    def up(self):
        return self.participation is not None

    def promises(self):
        return self.up and self.participation.promise()

    async def stop(self):
        participation, self.participation = self.participation, None
        if participation is not None:
            await participation.stop()
            await self.bus.close()

    async def kill(self):
        """As kill -9 would: not a word to anybody."""
        participation, self.participation = self.participation, None
        if participation is not None:
            await participation.abandon()
        await self.bus.close()
        self.hands.running.clear()
        self.hands.warm.clear()
        self.hands.uploads.clear()

    async def begin(self, kind, model, digest="", *, timeout=10_000, key="", user="eve"):
        if digest:
            self.hands.uploads.add(digest)
            self.participation.uploaded(digest, 2.0)
        request = Request(
            id=f"t{next(IDS)}", operation=Operation(kind=kind, model=model, digest=digest), by=self.name,
            timeout=timeout, key=key, user=user,
        )  # fmt: skip
        return await self.store.begin(request)

    async def outcome(self, tx_id, seconds=DEADLINE):
        """Done, RolledBack, or the last Pending."""
        said = None

        def final(sight):
            nonlocal said
            tx = sight.store.txs.get(tx_id)
            said = None if tx is None else answer(sight.store, sight.now, tx)
            return said is not None and not isinstance(said, Pending)

        await self.participation.wait_for(final, seconds)
        return said

    async def do(self, kind, model, digest="", **changes):
        """The whole operation: its answer."""
        begun = await self.begin(kind, model, digest, **changes)
        return begun if isinstance(begun, Refusal) else await self.outcome(begun)


class Machines:
    """Nodes n0, n1 … that find each other in one Redis."""

    def __init__(self, url, prefix, directory, count=3, replicas=0, **changes):
        self.url, self.prefix, self.directory, self.changes = url, prefix, directory, changes
        self.nodes = {f"n{i}": Node(self, f"n{i}") for i in range(count)}
        self.broken: list[str] = []
        self.replicas = replicas

    def __getitem__(self, name):
        return self.nodes[name]

    def somebody_has(self, digest):
        return any(
            digest in n.hands.packages or digest in n.hands.uploads or digest in n.hands.in_staging.values()
            for n in self.nodes.values()
        )

    async def __aenter__(self):
        try:
            await asyncio.gather(*(node.start() for node in self.nodes.values()))
            await self.rest()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_):
        for node in self.nodes.values():
            with contextlib.suppress(PenstockError):
                await (node.stop() if node.up else asyncio.sleep(0))
        assert not self.broken, self.broken

    async def rest(self, seconds=DEADLINE):
        """Wait until nothing is left to do, and everything is as it has to be."""
        broken = ["nothing was looked at"]
        limit = asyncio.get_running_loop().time() + seconds
        while broken:
            assert asyncio.get_running_loop().time() < limit, broken
            await asyncio.sleep(0.02)
            broken = await self.restless()
        assert not self.broken, self.broken

    async def restless(self):
        up = {name: node for name, node in self.nodes.items() if node.up}
        try:
            sight = await next(iter(up.values())).store.look()
        except BusDown as error:
            return [str(error)]
        at = sight.store
        if not at.lineage:
            return ["there is no catalogue"]
        if at.members.keys() - up.keys() or at.expected - up.keys():
            return [f"{sorted(at.members)} and {sorted(at.expected)} are counted on"]
        machines = {name: node.participation._machine for name, node in up.items()}
        try:
            broken = list(invariants.at_rest(at, {name: machine.actual for name, machine in machines.items()}))
        except KeyError as error:
            return [f"there is no lease of {error}"]
        online = {name: entry for name, entry in at.models.items() if entry.state is State.ONLINE}
        for name, node in up.items():
            if not node.participation.ready:
                broken.append(f"{name} is not ready: {node.participation.problem}")
            if node.hands.running != online:
                broken.append(f"{name} runs {sorted(node.hands.running)}, not {sorted(online)}")
            if node.hands.in_staging or node.hands.warm or node.hands.uploads:
                broken.append(f"{name} has left {node.hands.in_staging} {node.hands.warm} {node.hands.uploads}")
            journal = node.participation._file.load()
            if journal is None or journal.prepared or journal.decided or dict(journal.models) != dict(at.models):
                broken.append(f"the journal of {name} is not up to date")
        return broken

    async def judge(self):
        """What the leader does each second: strike off who has no lease. Any node may lead here."""
        for node in self.nodes.values():
            if node.up and node.participation.may_judge():
                store = (await node.store.look()).store
                for name in {*store.members, *store.expected} - store.leases.keys():
                    await node.store.forget(name, store.members.get(name, 0))
                return
