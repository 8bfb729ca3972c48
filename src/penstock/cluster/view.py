"""What Redis says at one moment, read by one script in one round trip; models only when something has changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from penstock.cluster.bus import Bus
from penstock.cluster.plan import Lives, ModelEntry, ModelState, Plan, RunEntry
from penstock.flow.graph import Topology
from penstock.placement.plan import ExecutorKey


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
    """Redis at one moment."""

    rev: str
    now: float
    """Redis time, seconds."""
    leader: str
    term: int
    members: dict[str, Member]
    models: dict[str, ModelState]

    def live(self) -> dict[str, Lives]:
        """The members that may be given executors."""
        return {
            m.id: Lives(incarnation=m.incarnation, slots=max(1, m.number("slots")))
            for m in self.members.values()
            if m.live
        }

    def placed(self, but: str = "") -> dict[ExecutorKey, str]:
        """Every planned executor of all models but one -> its node."""
        return {
            ExecutorKey(name, *(int(part) for part in executor.split("."))): assigned.node
            for name, state in self.models.items()
            if state.plan is not None and name != but
            for executor, assigned in state.plan.executors.items()
        }


EMPTY = View(rev="", now=0.0, leader="", term=0, members={}, models={})


async def look(bus: Bus, known: View) -> View:
    """Read everything that may have changed since `known`. Raises `BusDown`."""
    answer = await bus.script(
        "view", [bus.key(k) for k in ("rev", "members", "models", "leader")], [bus.key(""), known.rev]
    )
    rev, seconds, micros, leader, members, *models = answer
    leads = dict(_pairs(leader))
    return View(
        rev=rev,
        now=int(seconds) + int(micros) / 1e6,
        leader=leads.get("node", ""),
        term=int(leads.get("term", 0)),
        members={
            name: Member(id=name, incarnation=int(incarnation), lease=dict(_pairs(lease)))
            for name, incarnation, lease in members
        },
        models={s.entry.name: s for s in map(_state, models[0])} if models and models[0] is not None else known.models,
    )


def _pairs(flat: list[str]) -> Iterator[tuple[str, str]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _state(parts: list[Any]) -> ModelState:
    model, plan, run, connected, lost = parts
    return ModelState(
        entry=_entry(dict(_pairs(model))),
        plan=msgspec.json.decode(plan, type=Plan) if plan else None,
        run={name: msgspec.json.decode(text, type=RunEntry) for name, text in _pairs(run)},
        connected={node: int(revision) for node, revision in _pairs(connected)},
        lost={node: int(count) for node, count in _pairs(lost)},
    )


def _entry(fields: dict[str, str]) -> ModelEntry:
    return ModelEntry(
        name=fields["name"],
        path=fields["path"],
        desired=fields["desired"],
        number=int(fields["number"]),
        generation=int(fields["generation"]),
        config=msgspec.json.decode(fields.get("config") or "{}"),
        executors=int(fields["executors"]) if fields.get("executors") else None,
        topology=_topology(fields["topology"]),
        changed=float(fields["changed"]),
        error=fields.get("error", ""),
        counter=int(fields["counter"]),
    )


@lru_cache(maxsize=4096)
def _topology(text: str) -> Topology:
    return msgspec.json.decode(text, type=Topology)
