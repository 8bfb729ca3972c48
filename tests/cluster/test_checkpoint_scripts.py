"""What Redis knows of durable checkpoints: the leader's scripts on a real server."""

from __future__ import annotations

import contextlib
import hashlib

import msgspec
import pytest
from tests.cluster.catalogue_in_redis import asynchronous, connected

from penstock.cluster.checkpoint_record import CheckpointRecord
from penstock.cluster.checkpoint_scripts import NotLeading, Records
from penstock.cluster.store import CatalogueStore
from penstock.cluster.transaction.records import Entry, State
from penstock.cluster.view import view_of

MODEL, GENERATION, TERM = "default/counts", 7, 4
PLAN = '{"revision": 3, "text": "grüß"}'
SHA = hashlib.sha1(PLAN.encode()).hexdigest()


def record(number, **more):
    return CheckpointRecord(generation=GENERATION, number=number, **more)


@contextlib.asynccontextmanager
async def led(url, prefix):
    """A node that leads a cluster with one online model and its plan."""
    async with connected(url, prefix) as bus:
        await bus.command("HSET", bus.key("leader"), "node", "a", "term", TERM)
        await entry(bus)
        await bus.command("SET", bus.key("plan", MODEL), PLAN)
        await bus.command("SET", bus.key("lineage"), '["founded"]')
        yield bus, Records(bus, "a")


async def entry(bus, generation=GENERATION, state=State.ONLINE):
    text = msgspec.json.encode(Entry(name=MODEL, generation=generation, state=state, digest="d"))
    await bus.command("HSET", bus.key("models"), MODEL, text)


async def on_record(bus):
    text = await bus.command("HGET", bus.key("checkpoints"), MODEL)
    return None if text is None else msgspec.json.decode(text, type=CheckpointRecord)


@asynchronous
async def test_numbers_only_grow(valkey, prefix):
    async with led(valkey, prefix) as (_, records):
        assert await records.begin(TERM, MODEL, GENERATION, SHA, 0) == 1
        assert await records.begin(TERM, MODEL, GENERATION, SHA, 0) == 2
        assert await records.begin(TERM, MODEL, GENERATION, SHA, 40) == 41, "the store knew greater ones"
        assert await records.begin(TERM, MODEL, GENERATION, SHA, 3) == 42
        large = 10**15
        assert await records.begin(TERM, MODEL, GENERATION, SHA, large) == large + 1
        assert await records.begin(TERM, MODEL, GENERATION, SHA, 0) == large + 2


@asynchronous
async def test_a_checkpoint_needs_the_plan_and_the_generation_with_which_it_began(valkey, prefix):
    async with led(valkey, prefix) as (bus, records):
        assert await records.begin(TERM, MODEL, GENERATION, "another plan", 0) is None
        assert await records.begin(TERM, MODEL, 6, SHA, 0) is None
        assert await records.unchanged(TERM, MODEL, GENERATION, SHA)
        assert await records.complete(TERM, MODEL, SHA, record(1))
        await bus.command("SET", bus.key("plan", MODEL), PLAN.replace("3", "4"))
        assert not await records.unchanged(TERM, MODEL, GENERATION, SHA)
        assert not await records.complete(TERM, MODEL, SHA, record(2))
        assert await on_record(bus) == record(1)
        await bus.command("DEL", bus.key("plan", MODEL))
        assert await records.begin(TERM, MODEL, GENERATION, SHA, 0) is None
        assert not await records.complete(TERM, MODEL, SHA, record(2))
        assert await records.note(TERM, MODEL, record(1, error="no")), "what went wrong needs no plan"
        await entry(bus, GENERATION + 1)
        assert not await records.note(TERM, MODEL, record(1))
        assert (await on_record(bus)).error == "no"


@asynchronous
async def test_only_the_leader_of_the_term_writes(valkey, prefix):
    async with led(valkey, prefix) as (bus, records):
        for stranger, term in ((records, TERM - 1), (records, TERM + 1), (Records(bus, "b"), TERM)):
            for call in (
                stranger.begin(term, MODEL, GENERATION, SHA, 0),
                stranger.unchanged(term, MODEL, GENERATION, SHA),
                stranger.complete(term, MODEL, SHA, record(1)),
                stranger.note(term, MODEL, record(1)),
                stranger.correct(term, MODEL, record(1)),
                stranger.forget(term, [MODEL]),
            ):
                with pytest.raises(NotLeading):
                    await call
        assert await on_record(bus) is None
        assert await bus.command("EXISTS", bus.key("checkpoint-numbers")) == 0


@asynchronous
async def test_an_earlier_checkpoint_does_not_take_the_place_of_a_later_one_but_by_correction(valkey, prefix):
    async with led(valkey, prefix) as (bus, records):
        assert await records.complete(TERM, MODEL, SHA, record(5))
        assert not await records.complete(TERM, MODEL, SHA, record(4))
        assert not await records.note(TERM, MODEL, record(3, error="late"))
        assert await on_record(bus) == record(5)
        assert await records.note(TERM, MODEL, record(5, in_a_row=1, error="full"))
        bus.bell.clear()
        assert await records.correct(TERM, MODEL, record(2))
        assert await on_record(bus) == record(2)
        await bus.wait(5.0)
        old = CheckpointRecord(generation=GENERATION - 1, number=99)
        await bus.command("HSET", bus.key("checkpoints"), MODEL, msgspec.json.encode(old))
        assert await records.complete(TERM, MODEL, SHA, record(6)), "another generation counts anew"


@asynchronous
async def test_what_is_history_is_forgotten(valkey, prefix):
    async with led(valkey, prefix) as (bus, records):
        await records.begin(TERM, MODEL, GENERATION, SHA, 0)
        await records.complete(TERM, MODEL, SHA, record(1))
        await records.forget(TERM, [MODEL, "default/unknown"])
        assert await on_record(bus) == record(1), "it is online"
        await entry(bus, GENERATION + 1, State.OFFLINE)
        await records.forget(TERM, [MODEL])
        assert await on_record(bus) is None
        assert await bus.command("HGET", bus.key("checkpoint-numbers"), MODEL) is None


@asynchronous
async def test_every_node_sees_it(valkey, prefix):
    async with led(valkey, prefix) as (bus, records):
        store = CatalogueStore(bus, "b", 60_000)
        await bus.command("SADD", bus.key("planned"), MODEL)
        await records.complete(TERM, MODEL, SHA, record(3, bytes=17))
        await bus.command("DEL", bus.key("plan", MODEL))
        seen = view_of(await store.look(), lambda digest, config: None)
        assert seen.checkpoints == {MODEL: record(3, bytes=17)}
        assert (seen.models[MODEL].durable, seen.models[MODEL].checkpoint) == (record(3, bytes=17), 3)
        await records.correct(TERM, MODEL, record(0))
        seen = view_of(await store.look(), lambda digest, config: None)
        assert (seen.models[MODEL].durable, seen.models[MODEL].checkpoint) == (record(0), None)
        await entry(bus, GENERATION + 1)
        await bus.command("DEL", bus.key("version"))
        seen = view_of(await store.look(), lambda digest, config: None)
        assert seen.models[MODEL].durable is None, "it is of an earlier generation"
        assert seen.checkpoints == {MODEL: record(0)}
