"""What is known of the cluster at one moment: the catalogue and the runtime layer, decoded and put together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec

from penstock.cluster.checkpoint_record import CheckpointRecord
from penstock.cluster.checkpoint_record import decoded as checkpoint_record
from penstock.cluster.plan import (
    Assigned,
    Failure,
    Lives,
    ModelEntry,
    ModelState,
    Move,
    Plan,
    RunEntry,
    ShiftWish,
    executor_id,
    executor_of,
)
from penstock.cluster.store import Runtime, Sight
from penstock.cluster.transaction.records import Entry, State
from penstock.flow.graph import Topology
from penstock.placement.plan import ExecutorKey
from penstock.settings import Replication

Describe: TypeAlias = Callable[[str, str], Topology | None]
"""(digest, configuration as JSON text) -> what the flow looks like, if this node knows."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is to run, as `Entry.options` holds it."""

    executors: int | None = None
    recovery: str = "none"
    replication: Replication = Replication()


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A member as its lease describes it. `lease` is empty once the lease has run out."""

    id: str
    incarnation: int
    lease: Mapping[str, str]

    @property
    def live(self) -> bool:
        """Whether the lease is in force, and is this incarnation's."""
        return self.lease.get("incarnation") == str(self.incarnation)

    def number(self, field: str) -> int:
        """A number from the lease; 0 when there is none."""
        return int(float(self.lease.get(field, "0") or "0"))


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster at one moment."""

    lineage: tuple[str, ...]
    revision: int
    """Of the catalogue."""
    now: float
    """Redis time, seconds."""
    leader: str
    term: int
    members: dict[str, Member]
    models: dict[str, ModelState]
    returning: dict[str, Member] = {}
    """Nodes that were members and are about to be admitted again. After Redis has lost its memory everybody is that:
    what runs there goes on."""
    checkpoints: dict[str, CheckpointRecord] = {}
    """What is on record of durable checkpoints, also of models that have none any more."""

    def live(self) -> dict[str, Lives]:
        """The members that may be given executors."""
        return {m.id: _lives(m) for m in self.members.values() if m.live}

    def unjudged(self) -> dict[str, Lives]:
        """The same for somebody who may not judge yet: a member whose lease is missing may be about to renew it."""
        return {m.id: _lives(m) for m in self.members.values()}

    def awaited(self, plan: Plan, may_judge: bool) -> bool:
        """Whether the plan has a part for a node that runs it and is not a member again yet."""
        there = {m.id: m.incarnation for m in self.returning.values() if m.live or not may_judge}
        return any(there.get(a.node) == a.incarnation for a in plan.seats.values())

    def placed(self, but: str = "") -> dict[ExecutorKey, str]:
        """Every planned executor of all models but one -> its node. A standby counts as an executor of its own."""
        return {
            key: assigned.node
            for name, state in self.models.items()
            if state.plan is not None and name != but
            for key, assigned in _placed(state.plan).items()
        }

    def numbers(self, but: str = "") -> set[int]:
        """The numbers of all planned models but one."""
        return {state.plan.number for name, state in self.models.items() if state.plan is not None and name != but}


EMPTY = View(lineage=(), revision=0, now=0.0, leader="", term=0, members={}, models={})


def view_of(sight: Sight, describe: Describe) -> View:
    """Decode what was seen. While Redis has no catalogue there are no models in it."""
    store = sight.store
    checkpoints = {name: checkpoint_record(text) for name, text in sight.checkpoints.items()}
    return View(
        lineage=store.lineage,
        revision=store.rev,
        now=sight.now / 1000,
        leader=sight.leader,
        term=sight.term,
        members={
            name: Member(id=name, incarnation=incarnation, lease=sight.fields.get(name, {}))
            for name, incarnation in store.members.items()
        },
        returning={
            name: Member(id=name, incarnation=store.incarnations.get(name, 0), lease=sight.fields.get(name, {}))
            for name in store.expected - store.members.keys()
        },
        models={
            name: state_of(entry, sight.runtime.get(name), describe, checkpoints.get(name))
            for name, entry in store.models.items()
            if entry.generation and (entry.state is not State.DELETED or name in sight.runtime)
        },
        checkpoints=checkpoints,
    )


def state_of(
    entry: Entry, runtime: Runtime | None, describe: Describe, record: CheckpointRecord | None = None
) -> ModelState:
    """One model of the catalogue with what is planned and what runs."""
    known = runtime or Runtime()
    failure = _failure(known.failed) if known.failed else None
    options = _options(entry.options)
    durable = record if record is not None and record.generation == entry.run else None
    return ModelState(
        entry=ModelEntry(
            name=entry.name,
            desired="online" if entry.state is State.ONLINE else "offline",
            generation=entry.run,
            revision=entry.generation,
            digest=entry.digest,
            version=entry.version,
            config=decode_config(entry.config),
            executors=options.executors,
            recovery=options.recovery,
            replication=options.replication,
            topology=describe(entry.digest, entry.config) if entry.digest else None,
            lock=entry.lock,
            user=entry.user,
            changed=entry.changed / 1000,
            error=failure.error if failure is not None and failure.generation == entry.run else "",
            counter=known.counter,
        ),
        plan=_plan(known.plan) if known.plan else None,
        run={name: _run(text) for name, text in known.run.items()},
        connected={node: int(revision) for node, revision in known.connected.items()},
        lost={node: int(count) for node, count in known.lost.items()},
        moves={executor: _move(text) for executor, text in known.moves.items() if "." in executor},
        shifts={int(stage): _wish(text) for stage, text in known.moves.items() if "." not in stage},
        checkpoint=(durable.number or None) if durable is not None else None,
        durable=durable,
        plan_sha=_sha(known.plan) if known.plan else "",
    )


def _placed(plan: Plan) -> dict[ExecutorKey, Assigned]:
    placed = {}
    for place, assigned in plan.seats.items():
        executor = executor_id(executor_of(place))
        primary = plan.seat(str(executor)) == place
        placed[ExecutorKey(plan.model if primary else place, executor.stage, executor.index)] = assigned
    return placed


def _lives(member: Member) -> Lives:
    return Lives(incarnation=member.incarnation, slots=max(1, member.number("slots")))


def decode_config(text: str) -> dict[str, Any]:
    """A configuration as the catalogue keeps it."""
    return msgspec.json.decode(text, type=dict[str, Any])


@lru_cache(maxsize=4096)
def _plan(text: str) -> Plan:
    return msgspec.json.decode(text, type=Plan)


@lru_cache(maxsize=4096)
def _sha(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


@lru_cache(maxsize=16384)
def _run(text: str) -> RunEntry:
    return msgspec.json.decode(text, type=RunEntry)


@lru_cache(maxsize=1024)
def _move(text: str) -> Move:
    return msgspec.json.decode(text, type=Move)


@lru_cache(maxsize=1024)
def _wish(text: str) -> ShiftWish:
    return msgspec.json.decode(text, type=ShiftWish)


@lru_cache(maxsize=1024)
def _failure(text: str) -> Failure:
    return msgspec.json.decode(text, type=Failure)


@lru_cache(maxsize=1024)
def _options(text: str) -> Options:
    return msgspec.json.decode(text, type=Options)
