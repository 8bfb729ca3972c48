"""What an operation needs before it may begin (M5): add what is not there, change and delete what is offline, …"""

from __future__ import annotations

from enum import Enum

import msgspec

from penstock.cluster.transaction.records import Entry, Kind, Operation, State


class Why(Enum):
    """What a refusal means to the caller, with its HTTP status."""

    MISSING = 404
    STATE = 409
    KEY = 422
    UNAVAILABLE = 503


class Refusal(msgspec.Struct, frozen=True):
    """Nothing was begun and nothing is remembered. `nodes` gives reasons per node, where they differ."""

    why: Why
    reason: str
    remedy: str = ""
    nodes: dict[str, str] = {}


NEEDS = {
    Kind.UPDATE: State.OFFLINE,
    Kind.DELETE: State.OFFLINE,
    Kind.ONLINE: State.OFFLINE,
    Kind.OFFLINE: State.ONLINE,
}
"""The state that a model must be in. ADD needs that there is none."""


def check(operation: Operation, entry: Entry | None, base: int | None) -> Refusal | None:
    """Why `operation`, based on generation `base` (`None`: whatever it is), may not begin on `entry`."""
    name = operation.model
    here = entry if entry is not None and entry.state is not State.DELETED else None
    if operation.kind is Kind.ADD:
        if here is not None:
            return Refusal(Why.STATE, f"there is a model {name!r} already", "delete it first, or choose another name")
    elif here is None:
        return Refusal(Why.MISSING, f"there is no model {name!r}", "penstock model list shows those that there are")
    elif operation.live and here.state is not State.ONLINE:
        remedy = "leave out what asks for a live update"
        return Refusal(Why.STATE, f"{name!r} is {here.state.value}: there is nothing to update live", remedy)
    elif not operation.live and here.state is not NEEDS[operation.kind]:
        if operation.kind.value == here.state.value:
            return Refusal(Why.STATE, f"{name!r} is {here.state.value} already")
        other = "offline" if here.state is State.ONLINE else "online"
        remedy = f"first: penstock model {other} {name}"
        return Refusal(Why.STATE, f"{name!r} is {here.state.value}: {operation.kind.value} is not possible", remedy)
    elif base is not None and here.generation != base:
        return Refusal(Why.UNAVAILABLE, f"{name!r} was just changed by somebody else", "look at it and try again")
    if entry is not None and entry.lock:
        return Refusal(Why.UNAVAILABLE, f"{name!r} is being changed by operation {entry.lock}", "try again later")
    return None
