"""What a replica's machine tells the worker to do."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple, TypeAlias

from penstock.exchange.replica.messages import Checkpoint, Message


class Party(Enum):
    """Whom a message is for. The worker knows where they are."""

    PRODUCER = "producer"
    """The primary at the other end of input channel `target`."""
    CONSUMER = "consumer"
    """The primary at the other end of output channel `target` (with direct feed: its standbys, too)."""
    REPLICA = "replica"
    """The replica named `target`."""
    LEADER = "leader"


Debtor: TypeAlias = tuple[Party, int | str]
"""Somebody who owes an answer."""


class Send(NamedTuple):
    """Send a message. It may be lost: whatever matters is said again by `silence`."""

    party: Party
    target: int | str
    message: Message


class Prepare(NamedTuple):
    """Make a checkpoint ready to be put in force (read it, migrate it), then call `prepared`."""

    checkpoint: Checkpoint


class Install(NamedTuple):
    """Put the prepared checkpoint in force, at once and as a whole."""

    position: int


class Activate(NamedTuple):
    """This replica is the primary now: load what is in force, and go on executing at `position` + 1."""

    position: int


class Retire(NamedTuple):
    """Stop: another replica is primary, or this one is not wanted any more."""


class Alarm(NamedTuple):
    """Somebody must hear of this."""

    text: str


class Work(NamedTuple):
    """One position of the order log, to be executed. `draws` `None`: the values are to be drawn now and reported;
    otherwise they are the values that the step gets. `channel` -1: an event, no frame."""

    position: int
    channel: int
    seq: int
    content: Any
    draws: tuple[Any, ...] | None


Instruction: TypeAlias = Send | Prepare | Install | Activate | Retire | Alarm
