"""What the machines tell the worker to do. They are to be carried out in order, as part of the same log position."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from penstock.exchange.frame import Epoch
from penstock.exchange.split.messages import Barrier, Verdict
from penstock.exchange.split.routing import Shift

# ---- to a producer or consumer of the stage -------------------------------------------------------------------------


class Link(NamedTuple):
    """The channels with this executor count from now on. A producer begins them with the edge's watermark, and with
    END if the edge has ended; for a consumer they are lanes without a watermark yet."""

    executor: int


class Unlink(NamedTuple):
    """They do not count any more: a producer sends nothing further on them, a consumer's lanes are dropped."""

    executor: int


# ---- to a producer --------------------------------------------------------------------------------------------------


class Route(NamedTuple):
    """Split batches by this table from now on (`Router(slots, table)`). Parts for slot `held` go to `Producer.hold`."""

    table: tuple[int, ...]
    slots: int
    held: int | None


class Tell(NamedTuple):
    """Send a frame on the channel of `edge` to `executor`, behind everything that was gathered for it."""

    edge: int
    executor: int
    frame: Barrier | Verdict


class Pass(NamedTuple):
    """Send records that were held back."""

    edge: int
    executor: int
    content: Any


class Advance(NamedTuple):
    """Tell this watermark on the channel."""

    edge: int
    executor: int
    watermark: int


class Finish(NamedTuple):
    """Send END on the channel."""

    edge: int
    executor: int


# ---- to the giver ---------------------------------------------------------------------------------------------------


class Cut(NamedTuple):
    """Take the state of the moving groups, and their timers, out of the live state; keep it aside; and emit
    `Member.pieces` of it on the channel to the taker."""

    shift: Shift


class Forget(NamedTuple):
    """What was cut out belongs to the taker now: drop it."""

    shift: Shift


class Thaw(NamedTuple):
    """Put what was cut out back; timers that have become due fire."""

    shift: Shift


# ---- to the taker ---------------------------------------------------------------------------------------------------


class Stage(NamedTuple):
    """Read the state, beside the live one, and keep it aside."""

    shift: Epoch
    contents: tuple[Any, ...]


class Adopt(NamedTuple):
    """Put what was staged into the live state; timers that are due fire. A newcomer first raises its watermarks to
    `marks`, if they are lower."""

    shift: Epoch
    marks: dict[int, int]


class Discard(NamedTuple):
    """Drop what was staged, if anything was."""

    shift: Epoch


Instruction: TypeAlias = (
    Link | Unlink | Route | Tell | Pass | Advance | Finish | Cut | Forget | Thaw | Stage | Adopt | Discard
)
