"""What the parties of a replicated executor say to each other. Plain data: the worker writes them with msgpack.

Every message carries an epoch. Of data, replication and acknowledgements it is the epoch in which the speaking (or,
from a standby, the followed) primary was appointed; of reports to the leader it is that of the assignment, except of
`Caught`, where it is the followed primary's.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from penstock.exchange.frame import Epoch


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Any of them."""

    epoch: Epoch


# ---- channels: producer <-> consumer --------------------------------------------------------------------------------


class Data(Message, frozen=True):
    """A frame. On the wire it is an ordinary frame of `penstock.exchange.frame`."""

    channel: int
    seq: int
    payload: bytes


class Hello(Message, frozen=True):
    """A promoted producer asks its consumer for the high-water mark; the answer is a `Confirm`."""

    channel: int


class Confirm(Message, frozen=True):
    """The consumer's marks. Everything before `next_seq` has arrived, everything through `consumed` is processed, and
    the effect of everything through `safe` outlives the consumer's primary: only that may be forgotten."""

    channel: int
    next_seq: int
    consumed: int
    safe: int
    producer: Epoch
    """The latest producer that the consumer has heard of: an older one that reads this has been replaced."""


class Resume(Message, frozen=True):
    """The consumer asks for every frame from `next_seq` on: after a gap, or because it was promoted."""

    channel: int
    next_seq: int
    producer: Epoch
    """As in `Confirm`."""


# ---- replication: primary -> standby --------------------------------------------------------------------------------


class Run(msgspec.Struct, frozen=True, tag="r", array_like=True):
    """`count` log positions: frames `first`, `first + 1`, … of one channel, processed one after the other."""

    channel: int
    first: int
    count: int


class Step(msgspec.Struct, frozen=True, tag="s", array_like=True):
    """One log position. `channel` -1 is an event that is no frame (a timer, a flush, records read from a source),
    with `event` as its content. `draws` are the values of `now`, `random` and external calls, as they were drawn."""

    channel: int
    seq: int
    event: Any = None
    draws: tuple[Any, ...] = ()


Entry: TypeAlias = Run | Step


class Log(Message, frozen=True):
    """Entries from position `first` on."""

    first: int
    entries: tuple[Entry, ...]
    digests: tuple[tuple[int, int], ...] = ()
    """(position, rolling digest of all output through it)."""
    safe: dict[int, int] = {}
    """Output channel -> what the consumer has safe: the standby forgets that output too."""


class Input(Message, frozen=True):
    """A frame that the primary received, forwarded as it came."""

    channel: int
    seq: int
    payload: bytes


class Output(msgspec.Struct, frozen=True, array_like=True):
    """An output frame that is kept until its effect is safe."""

    seq: int
    position: int
    """It depends on the order log through here."""
    payload: bytes


class Checkpoint(Message, frozen=True):
    """The state after log position `position`."""

    session: int
    """Counts the full snapshots given to one standby: answers about an earlier one are refused."""
    position: int
    base: int | None
    """Changes since the checkpoint of this position; `None`: complete."""
    state: Any
    marks: dict[int, int]
    """Input channel -> the last frame processed."""
    next_out: dict[int, int]
    outputs: dict[int, tuple[Output, ...]]
    """Unacknowledged output."""
    digest: int
    migrate: bool = False
    """The standby runs another version: the state goes through `migrate`."""


class Warm(Message, frozen=True):
    """A passive standby begins to execute the log: it is to be promoted soon."""


class Handover(Message, frozen=True):
    """The primary has stopped after `position`; what it has sent or owes is here."""

    session: int
    position: int
    next_out: dict[int, int]
    outputs: dict[int, tuple[Output, ...]]
    digest: int


# ---- replication: standby -> primary --------------------------------------------------------------------------------


class Ack(Message, frozen=True):
    """The standby holds the log through `acked` **and** every input that it names, has executed through `executed`, and
    holds the inputs before `held` (channel -> next missing)."""

    session: int
    acked: int
    executed: int
    executing: bool
    held: dict[int, int]


class Applied(Message, frozen=True):
    """The checkpoint of `position` is in force at the standby."""

    session: int
    position: int


class AskLog(Message, frozen=True):
    """Log positions from `first` on are missing."""

    session: int
    first: int


class AskInput(Message, frozen=True):
    """Forwarded frames from `first` on are missing."""

    session: int
    channel: int
    first: int


class AskSnapshot(Message, frozen=True):
    """The standby cannot go on from what it has: a full snapshot, please."""

    session: int
    diverged_at: int | None = None


# ---- reports to the leader ------------------------------------------------------------------------------------------


class Complete(Message, frozen=True):
    """From now on `standby` can take over without loss (the primary releases nothing that it has not acknowledged)."""

    standby: str


class Caught(Message, frozen=True):
    """The standby has executed all that the stopped primary had: promote it."""

    standby: str
    position: int


class Diverged(Message, frozen=True):
    """The standby computed something else than the primary."""

    standby: str
    position: int


class Refused(Message, frozen=True):
    """A replica was appointed that cannot take over: restore from a durable checkpoint."""

    replica: str
    reason: str
