"""What is said during a shift: frames between executors, events of an executor's log, and reports to the leader.

All of it is plain data that names its shift. Frames travel in the ordinary channels, so they are numbered, repeated and
fenced by them; a report may be lost, and is said again after silence.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from penstock.exchange.frame import Epoch
from penstock.exchange.split.routing import Shift

# ---- frames ---------------------------------------------------------------------------------------------------------


class Barrier(msgspec.Struct, frozen=True, tag="barrier"):
    """Producer -> giver: no record of the moving groups comes behind this, until a `Verdict`."""

    shift: Shift


class Verdict(msgspec.Struct, frozen=True, tag="verdict"):
    """Producer -> giver and taker: the shift is decided; what was held back comes behind this."""

    shift: Epoch
    committed: bool


class Piece(msgspec.Struct, frozen=True, tag="piece"):
    """Giver -> taker: a part of the state of the moving groups."""

    shift: Epoch
    number: int
    count: int
    marks: dict[int, int]
    """Edge -> the giver's watermark when the state was cut out: timers up to it have fired."""
    content: Any


Frame: TypeAlias = Barrier | Verdict | Piece

# ---- events of a log ------------------------------------------------------------------------------------------------


class Open(msgspec.Struct, frozen=True, tag="open"):
    """A producer or consumer of the stage opens its channel with the newcomer. From here on the channel counts: what
    is told on it, and what its watermark holds back, has to be the same in every replica."""

    shift: Shift


class Switch(msgspec.Struct, frozen=True, tag="switch"):
    """A producer begins to hold back."""

    shift: Shift


class Outcome(msgspec.Struct, frozen=True, tag="outcome"):
    """A party was told by the leader how the shift ended."""

    shift: Shift
    committed: bool


Event: TypeAlias = Open | Switch | Outcome

# ---- reports to the leader ------------------------------------------------------------------------------------------


class Report(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Any of them."""

    shift: Epoch
    party: str


class Prepared(Report, frozen=True):
    """The party has opened its channels for the shift, and so has who may be promoted in its place."""


class Staged(Report, frozen=True):
    """The taker has all of the state, beside its own, and so has who may be promoted in its place: commit."""


class Settled(Report, frozen=True):
    """The party has acted on the decision, and who may be promoted in its place has, too."""
