"""The rules of the transaction through Redis: the same stores and answers as in memory, whatever happens between."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest
from tests.cluster.catalogue_in_redis import asynchronous, connected, empty

from penstock.cluster.bus import BusDown
from penstock.cluster.store import CatalogueStore, Runtime
from penstock.cluster.transaction import admission, coordinator, invariants, rebuild
from penstock.cluster.transaction.admission import Standing
from penstock.cluster.transaction.answers import Done, answer
from penstock.cluster.transaction.coordinator import Request
from penstock.cluster.transaction.preconditions import Refusal, Why
from penstock.cluster.transaction.records import Journal, Kind, Operation, Phase, State, Store, Tx, Vote

LEASE = 60_000
REACHED: set[str] = set()
"""What the random walks have seen."""


class Recording(CatalogueStore):
    """Remembers the time that the last rule was given."""

    now = 0

    async def _within_deadline(self, apply, *args, **kwargs):
        def noted(store, now):
            self.now = now
            return apply(store, now)

        return await super()._within_deadline(noted, *args, **kwargs)


async def idempotency(bus):
    names = await bus.command("KEYS", bus.key("idem", "*"))
    return {name.removeprefix(bus.key("idem", "")): await bus.command("GET", name) for name in names}


def bare(store):
    """The store without what cannot be equal: when exactly leases end."""
    leases = {name: msgspec.structs.replace(lease, expires=0) for name, lease in store.leases.items()}
    return msgspec.structs.replace(store, leases=leases, keys={})


class Walk:
    """One random walk, in Redis and in memory."""

    def __init__(self, bus, seed):
        self.bus, self.rng = bus, random.Random(seed)
        self.stores = {name: Recording(bus, name, LEASE) for name in ("a", "b", "c")}
        self.nonces = {name: f"{name}/0" for name in self.stores}
        self.memory = Store()
        self.archived: dict[str, Tx] = {}
        self.count = 0

    async def step(self):
        rng, node = self.rng, self.rng.choice("abc")
        self.count += 1
        what = rng.choices(
            ("member", "begin", "vote", "decide", "abort", "finish", "ack", "leave", "forget", "renew", "lapse",
             "restart", "flush", "archive"),
            (8, 10, 14, 3, 1, 8, 6, 0.5, 2, 3, 1, 1, 0.3, 1),
        )[0]  # fmt: skip
        await getattr(self, what)(node)
        await self.compare()

    def note(self):
        REACHED.update(tx.phase.value for tx in self.memory.txs.values())
        REACHED.update(["founded"] if self.memory.lineage else [])

    async def both(self, node, rule, *args):
        store = self.stores[node]
        said = await store.change(rule, *args)
        return self.expect(said, rule, store.now, *args)

    def expect(self, said, rule, now, *args):
        before = self.memory
        self.memory, expected = rule(before, now, *args)
        assert said == expected, (rule.__name__, args)
        REACHED.update(["refused"] if isinstance(said, Refusal) else [])
        REACHED.update(["left"] if rule is admission.leave and said else [])
        assert not list(invariants.store(self.memory))
        if before.lineage == self.memory.lineage:
            assert not list(invariants.change(before, self.memory, now))
        return said

    async def compare(self):
        fresh = await CatalogueStore(self.bus, "z", LEASE).look()
        assert bare(fresh.store) == bare(self.memory)
        for store in self.stores.values():
            if self.rng.random() < 0.3:
                assert bare((await store.look()).store) == bare(self.memory)
        keys = {tx.key: tx.id for tx in self.archived.values() if tx.key}
        assert await idempotency(self.bus) == keys | dict(self.memory.keys)

    def incarnation(self, node):
        lease = self.memory.leases.get(node)
        return lease.incarnation if lease else self.memory.incarnations.get(node, 0)

    def some_tx(self):
        return self.rng.choice(list(self.memory.txs) or ["none"])

    async def member(self, node):
        if not self.memory.lineage:
            opens = self.rng.random() < 0.3 if self.memory.offers else self.rng.random() < 0.9
            name = rebuild.round_of(self.memory) if self.memory.offers and not opens else f"r{self.count}"
            journal = Journal(node=node, incarnation=self.incarnation(node), round=name, opens=opens)
            await self.both(node, rebuild.offer, self.nonces[node], LEASE, journal)
            offers = (await self.stores[node].look()).store.offers
            if len(offers) > 1:
                await self.both(node, rebuild.install, offers, f"l{self.count}", None)
            return
        if node not in self.memory.leases or self.rng.random() < 0.05:
            await self.both(node, admission.arrive, node, self.nonces[node], LEASE, 0)
        lineage, rev = self.memory.lineage, self.memory.rev - (self.rng.random() < 0.1)
        await self.both(node, admission.admit, node, self.incarnation(node), lineage, rev)

    async def begin(self, node):
        rng = self.rng
        name = rng.choice(("m1", "m2", "m3"))
        entry = self.memory.models.get(name)
        fitting = {None: Kind.ADD, State.DELETED: Kind.ADD, State.ONLINE: Kind.OFFLINE}
        kind = fitting.get(entry and entry.state) or rng.choice((Kind.UPDATE, Kind.ONLINE, Kind.DELETE))
        if rng.random() < 0.2:
            kind = rng.choice(list(Kind))
        operation = Operation(kind=kind, model=name, digest=f"d{self.count}", version=f"{self.count}")
        known = [*self.memory.keys, *(tx.key for tx in self.archived.values() if tx.key)]
        key = rng.choice(("", f"k{self.count}", rng.choice(known) if known else ""))
        request = Request(
            id=f"t{self.count}", operation=operation, by=node, timeout=rng.choice((1, 60_000)), key=key, user="eve"
        )
        said = await self.stores[node].begin(request)
        shown = {tx.id: tx for tx in self.archived.values() if key and tx.key == key}
        keys = {tx.key: tx.id for tx in shown.values()}
        before = self.memory
        self.memory = msgspec.structs.replace(before, txs={**before.txs, **shown}, keys={**before.keys, **keys})
        self.expect(said, coordinator.begin, self.stores[node].now, request)
        if shown:
            assert not isinstance(said, str) or said in shown
            self.memory = before
            REACHED.add("key of an archived one")
        if request.timeout == 1:
            await asyncio.sleep(0.003)

    async def vote(self, node):
        vote = Vote(True) if self.rng.random() < 0.95 else Vote(False, "no space left")
        open_ = [tx.id for tx in self.memory.open()]
        tx = self.rng.choice(open_) if open_ else self.some_tx()
        await self.both(node, coordinator.vote, tx, node, self.incarnation(node), vote)

    async def decide(self, node):
        await self.both(node, coordinator.decide, self.some_tx())

    async def abort(self, node):
        await self.both(node, coordinator.abort, self.some_tx(), "somebody said so")

    async def finish(self, node):
        await self.both(node, coordinator.finish, self.some_tx())

    async def ack(self, node):
        rev = self.memory.rev - (self.rng.random() < 0.2)
        await self.both(node, coordinator.ack, node, self.incarnation(node), self.memory.lineage, rev)

    async def leave(self, node):
        await self.both(node, admission.leave, node, self.incarnation(node))

    async def forget(self, node):
        other, judge = self.rng.choice("abc"), self.rng.choice(("", node))
        await self.both(node, admission.forget, other, self.memory.members.get(other, 0), LEASE, judge)

    async def archive(self, node):
        for tx in await self.both(node, coordinator.archive):
            self.archived[tx.id] = tx
            assert await self.stores[node].transaction(tx.id) == tx

    async def renew(self, node):
        nonce = self.nonces[node] if self.rng.random() < 0.9 else "another"
        incarnation = self.incarnation(node) - (self.rng.random() < 0.1)
        said = await self.stores[node].renew(nonce, incarnation)
        now = (await self.stores[node].look()).now
        self.expect(said, admission.renew, now, node, nonce, LEASE, incarnation)
        REACHED.add(said.value)
        if said is Standing.REVIVED:  # the script reads the clock itself
            since = (await self.stores[node].look()).store.leases[node].since
            lease = msgspec.structs.replace(self.memory.leases[node], since=since)
            self.memory = msgspec.structs.replace(self.memory, leases={**self.memory.leases, node: lease})

    async def lapse(self, node):
        await self.bus.command("DEL", self.bus.key("node", node))
        leases = {name: lease for name, lease in self.memory.leases.items() if name != node}
        self.memory = msgspec.structs.replace(self.memory, leases=leases)

    async def restart(self, node):
        """Another process, which knows nothing."""
        await self.lapse(node)
        self.nonces[node] = f"{node}/{self.count}"
        self.stores[node] = Recording(self.bus, node, LEASE)

    async def flush(self, node):
        await empty(self.bus)
        self.memory, self.archived = Store(), {}


@pytest.mark.parametrize("seed", range(12))
@asynchronous
async def test_a_random_walk_gives_the_same_stores_and_answers_as_in_memory(valkey, prefix, seed, monkeypatch):
    monkeypatch.setattr(coordinator, "ARCHIVED_AFTER", 0)
    async with connected(valkey, prefix) as bus:
        walk = Walk(bus, seed)
        for _ in range(150):
            await walk.step()
            walk.note()


def test_the_walks_go_everywhere():
    """Otherwise the comparison above would prove little."""
    assert {"finished", "aborted", "committing", "refused", "founded", "left", "key of an archived one"} <= REACHED
    assert {"granted", "revived", "refused", "empty"} <= REACHED


# ---- what happens between reading and writing ------------------------------------------------------------------------


class Interrupted(CatalogueStore):
    """Something happens between reading and writing."""

    intrusions = 1

    async def _write(self, sight, now, after, until):
        if self.intrusions:
            self.intrusions -= 1
            await self.intrusion()
        return await super()._write(sight, now, after, until)


async def members(bus, *names):
    """A new catalogue with these members; their stores, which all have seen it."""
    stores = [CatalogueStore(bus, name, LEASE) for name in names]
    assert await stores[0].offer(names[0], Journal(node=names[0], round="r", opens=True))
    for name, store in zip(names, stores, strict=True):
        assert await store.offer(name, Journal(node=name, round="r"))
    seen = await stores[0].look()
    assert await stores[0].install(seen.store.offers, None)
    for store in stores:
        assert await store.arrive(store.node, 0) == (Standing.GRANTED, 1)
    for store in stores:
        assert await store.admit(1, (await store.look()).store.lineage, 0)
    return stores


def request(store, model="m", **changes):
    operation = Operation(kind=Kind.ADD, model=model, digest="d")
    return Request(**{"id": "t1", "operation": operation, "by": store.node, "timeout": 60_000, **changes})


async def interrupted(bus, intrusion, name="a"):
    store = Interrupted(bus, name, LEASE)
    await store.look()
    store.intrusion = intrusion
    return store


@asynchronous
async def test_a_change_by_another_between_reading_and_writing_is_seen(valkey, prefix):
    async with connected(valkey, prefix) as bus:
        _, b = await members(bus, "a", "b")
        a = await interrupted(bus, lambda: b.begin(request(b, id="t2")))
        said = await a.begin(request(a))
        assert isinstance(said, Refusal)
        assert "t2" in said.reason or "there is a model" in said.reason
        assert a.conflicts == 1


@asynchronous
async def test_a_lease_that_runs_out_between_reading_and_writing_is_seen(valkey, prefix):
    async with connected(valkey, prefix) as bus:
        await members(bus, "a", "b")
        a = await interrupted(bus, lambda: bus.command("DEL", bus.key("node", "b")))
        said = await a.begin(request(a))
        assert isinstance(said, Refusal)
        assert said.nodes == {"b": "its lease ran out"}


@asynchronous
async def test_a_lease_of_another_incarnation_between_reading_and_writing_is_seen(valkey, prefix):
    async with connected(valkey, prefix) as bus:
        await members(bus, "a", "b")
        a = await interrupted(bus, lambda: bus.command("HSET", bus.key("node", "b"), "incarnation", 7))
        assert isinstance(await a.begin(request(a)), Refusal)


@asynchronous
async def test_a_renewal_between_reading_and_writing_is_no_conflict(valkey, prefix):
    async with connected(valkey, prefix) as bus:
        _, b = await members(bus, "a", "b")
        a = await interrupted(bus, lambda: b.renew("b", 1))
        assert await a.begin(request(a)) == "t1"
        assert a.conflicts == 0


@asynchronous
async def test_a_deadline_that_passes_between_reading_and_writing_is_seen(valkey, prefix):
    async with connected(valkey, prefix) as bus:
        a, b = await members(bus, "a", "b")
        assert await b.begin(request(b, timeout=300)) == "t1"
        assert await b.vote("t1", 1, Vote(True)) is Phase.PREPARING
        a = await interrupted(bus, lambda: asyncio.sleep(0.4))
        assert await a.vote("t1", 1, Vote(True)) is Phase.ABORTED
        assert a.conflicts == 1
        ended = await a.transaction("t1")
        assert ended is not None
        assert ended.reason == "decided after the deadline"


@asynchronous
async def test_after_a_loss_of_memory_nothing_from_before_is_believed(valkey, prefix):
    async with connected(valkey, prefix) as bus:
        await members(bus, "a", "b")
        before = await CatalogueStore(bus, "a", LEASE).look()

        async def again():
            await empty(bus)
            await members(bus, "a", "b")  # the same steps: a counter alone would be where it was

        a = await interrupted(bus, again)
        assert await a.begin(request(a)) == "t1"
        assert a.conflicts == 1
        after = await a.look(before)
        assert after.store.lineage != before.store.lineage
        assert after.version.partition("-")[0] == str(int(before.version.partition("-")[0]) + 1)
        assert bare(after.store) == bare((await CatalogueStore(bus, "a", LEASE).look()).store)


@asynchronous
async def test_a_catalogue_made_again_by_the_same_steps_is_not_taken_for_the_old_one(valkey, prefix):
    async with connected(valkey, prefix) as bus:
        a, _ = await members(bus, "a", "b")
        before = await a.look()
        await empty(bus)
        await members(bus, "a", "b")
        after = await a.look(before)
        assert after.version.partition("-")[0] == before.version.partition("-")[0]
        assert after.store.lineage != before.store.lineage


@asynchronous
async def test_what_was_archived_has_the_same_answer_for_ever(valkey, prefix, monkeypatch):
    monkeypatch.setattr(coordinator, "ARCHIVED_AFTER", -(10**9))
    async with connected(valkey, prefix) as bus:
        a, b = await members(bus, "a", "b")
        assert await a.begin(request(a, key="k")) == "t1"
        for store in (a, b):
            await store.vote("t1", 1, Vote(True))
        assert await a.finish("t1") is Phase.FINISHED
        assert await a.ack(1, (await a.look()).store.lineage, 1)
        assert await a.archive() == ()
        assert await b.leave(1)
        (archived,) = await b.archive()
        assert (await a.look()).store.txs == {}
        assert await a.transaction("t1") == archived
        assert answer(Store(), 0, archived) == Done("t1", 1)
        assert await a.begin(request(a, id="t2", key="k")) == "t1"
        assert await bus.command("PTTL", bus.key("ended", "t1")) > 23 * 3600 * 1000


@asynchronous
async def test_a_store_that_is_empty_again_has_nothing(valkey, prefix):
    async with connected(valkey, prefix) as bus:
        a, _ = await members(bus, "a", "b")
        assert await a.begin(request(a)) == "t1"
        await empty(bus)
        assert (await a.look()).store == Store()
        assert await a.renew("a", 1) is Standing.EMPTY
        refused = await a.begin(request(a, id="t2"))
        assert isinstance(refused, Refusal)
        assert refused.why is Why.UNAVAILABLE


@asynchronous
async def test_a_change_that_always_comes_too_late_ends_at_the_deadline(valkey, prefix):
    async with connected(valkey, prefix, lease=0.9) as bus:
        _, b = await members(bus, "a", "b")

        async def another():
            await b.begin(request(b, id=f"t{a.intrusions}", model=f"m{a.intrusions}"))

        a = await interrupted(bus, another)
        a.intrusions = 10_000
        with pytest.raises(BusDown, match=r"could not be changed in 1\.2 s"):
            await a.begin(request(a, id="late", model="late"))
        assert await b.transaction("late") is None


@asynchronous
async def test_changes_from_everywhere_at_the_same_time_all_count_once(valkey, prefix):
    async with connected(valkey, prefix) as bus:
        stores = await members(bus, *"abcdef")
        said = await asyncio.gather(
            *(s.begin(request(s, id=f"{s.node}{i}", model=f"{s.node}{i}")) for s in stores for i in range(5))
        )
        assert len(set(said)) == 30
        at = (await stores[0].look()).store
        assert len(at.open()) == 30
        assert not list(invariants.store(at))


# ---- reading ---------------------------------------------------------------------------------------------------------


@asynchronous
async def test_the_lease_tells_of_the_node_and_a_renewal_brings_it_up_to_date(valkey, prefix):
    async with connected(valkey, prefix) as bus:
        told = {"address": "http://a", "slots": 4}
        a = CatalogueStore(bus, "a", LEASE, lambda: told)
        await a.offer("nonce", Journal(node="a", round="r", opens=True))
        assert await a.install((await a.look()).store.offers, None)
        assert await a.arrive("nonce", 0) == (Standing.GRANTED, 1)
        assert (await a.look()).fields["a"].items() >= {"address": "http://a", "slots": "4", "incarnation": "1"}.items()
        told["slots"] = 9
        assert await a.renew("nonce", 1) is Standing.GRANTED
        assert (await a.look()).fields["a"]["slots"] == "9"


@asynchronous
async def test_a_lease_from_before_redis_time_was_moved_back_begins_at_the_next_renewal(valkey, prefix):
    async with connected(valkey, prefix) as bus:
        a, _ = await members(bus, "a", "b")
        before = await a.look()
        await bus.command("HSET", bus.key("node", "a"), "since", before.now + 1_000_000)
        assert await a.renew("a", 1) is Standing.GRANTED
        after = await a.look()
        assert before.now <= after.store.leases["a"].since <= after.now
        assert await a.renew("a", 1) is Standing.GRANTED
        assert (await a.look()).store.leases["a"].since == after.store.leases["a"].since


@asynchronous
async def test_the_runtime_layer_is_sent_when_it_has_changed(valkey, prefix):
    async with connected(valkey, prefix) as bus:
        a, _ = await members(bus, "a", "b")
        assert (await a.look()).runtime == {}
        await bus.command("SADD", bus.key("planned"), "g/m")
        await bus.command("SET", bus.key("plan", "g/m"), "{}")
        await bus.command("HSET", bus.key("run", "g/m"), "0.0", '{"node":"a"}')
        await bus.command("SET", bus.key("failed", "g/m"), "no")
        await bus.command("HSET", bus.key("counters"), "g/m", 3)
        await bus.command("INCR", bus.key("rev"))
        seen = (await a.look()).runtime
        assert seen == {"g/m": Runtime(plan="{}", run={"0.0": '{"node":"a"}'}, failed="no", counter=3)}
        assert (await a.look()).runtime is seen
        await bus.command("DEL", bus.key("plan", "g/m"))
        assert (await a.look()).runtime is seen
        await bus.command("INCR", bus.key("rev"))
        assert (await a.look()).runtime["g/m"].plan == ""


@asynchronous
async def test_a_counter_of_the_runtime_layer_that_starts_again_is_not_believed(valkey, prefix):
    async with connected(valkey, prefix) as bus:
        a, _ = await members(bus, "a", "b")
        for text in ("first", "second"):
            await bus.command("SADD", bus.key("planned"), "g/m")
            await bus.command("SET", bus.key("plan", "g/m"), text)
            await bus.command("INCR", bus.key("rev"))
            assert (await a.look()).runtime["g/m"].plan == text
            await empty(bus)
            await members(bus, "a", "b")


@asynchronous
async def test_what_was_done_is_in_the_log_with_who_asked(valkey, prefix):
    async with connected(valkey, prefix) as bus:
        a, b = await members(bus, "a", "b")
        assert await a.begin(request(a, user="eve")) == "t1"
        await a.vote("t1", 1, Vote(True))
        await b.vote("t1", 1, Vote(True))
        assert await a.finish("t1") is Phase.FINISHED
        assert await a.begin(request(a, id="t2", model="n")) == "t2"
        await b.vote("t2", 1, Vote(False, "no space left"))
        await b.leave(1)
        await bus.command("DEL", bus.key("node", "a"))
        assert not await b.forget("a", 1)
        assert await b.forget("a", 1, operator=True)
        rows = [fields for _, fields in await bus.command("XRANGE", bus.key("log"), "-", "+")]
        log = [dict(zip(row[::2], row[1::2], strict=True)) if isinstance(row, list) else row for row in rows]
        assert [(entry["kind"], entry.get("model"), entry.get("user")) for entry in log] == [
            ("catalogue.founded", None, None),
            ("node.arrived", None, None),
            ("node.arrived", None, None),
            ("node.joined", None, None),
            ("node.joined", None, None),
            ("operation.begun", "m", "eve"),
            ("model.added", "m", "eve"),
            ("operation.begun", "n", None),
            ("operation.rolled_back", "n", None),
            ("node.left", None, None),
            ("node.lost", None, None),
        ]
        assert log[6]["text"] == "model m was added for eve (generation 1)"
        assert log[8]["text"] == "add of n was rolled back: b: no space left"
        assert {entry["level"] for entry in log} == {"info", "warning"}
