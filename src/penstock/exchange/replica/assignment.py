"""Who is primary and who is standby: the record that the leader moves by compare-and-set.

Every change makes a greater epoch. These functions are the only legal changes; each returns `None` when the change must
not be made, so that a decision taken on old knowledge has no effect.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from penstock.exchange.frame import Epoch


class Mode(Enum):
    """What a standby does."""

    PASSIVE = "passive"
    """Redundant storage: it keeps checkpoint, inputs and order log."""
    ACTIVE = "active"
    """Redundant computing: it executes the order log at once."""


class Assignment(msgspec.Struct, frozen=True):
    """The replicas of one executor. Names are of replica instances and never used twice."""

    epoch: Epoch
    since: Epoch
    """When the present primary was appointed: the epoch of its frames."""
    primary: str
    standbys: dict[str, Mode] = {}
    protecting: frozenset[str] = frozenset()
    """Standbys that can take over; empty: the executor is degraded."""
    foreign: frozenset[str] = frozenset()
    """Standbys of another version: they take over in a planned hand-over only."""

    @property
    def degraded(self) -> bool:
        """Whether a crash of the primary would lose the executor."""
        return not self.protecting


def _next(assignment: Assignment, term: int | None) -> Epoch:
    return (max(assignment.epoch[0], term or 0), assignment.epoch[1] + 1)


def first(primary: str, epoch: Epoch = (1, 1)) -> Assignment:
    """A new executor without a standby."""
    return Assignment(epoch, epoch, primary)


def with_standby(
    old: Assignment, name: str, mode: Mode, *, foreign: bool = False, term: int | None = None
) -> Assignment | None:
    """A standby begins to catch up. One of another version has to be active: it cannot use checkpoints."""
    if name in old.standbys or name == old.primary or (foreign and mode is Mode.PASSIVE):
        return None
    standbys = {**old.standbys, name: mode}
    others = old.foreign | ({name} if foreign else frozenset())
    return Assignment(_next(old, term), old.since, old.primary, standbys, old.protecting, others)


def without_standby(old: Assignment, name: str, term: int | None = None) -> Assignment | None:
    """A standby is gone. The primary waits for its acknowledgements until it hears of this."""
    if name not in old.standbys:
        return None
    standbys = {other: mode for other, mode in old.standbys.items() if other != name}
    return Assignment(_next(old, term), old.since, old.primary, standbys, old.protecting - {name}, old.foreign - {name})


def protected(old: Assignment, name: str, reported: Epoch, term: int | None = None) -> Assignment | None:
    """The primary of assignment `reported` says that a standby is complete."""
    if reported != old.epoch or name not in old.standbys or name in old.protecting or name in old.foreign:
        return None
    return Assignment(_next(old, term), old.since, old.primary, old.standbys, old.protecting | {name}, old.foreign)


def unprotected(old: Assignment, name: str, term: int | None = None) -> Assignment | None:
    """A standby diverged."""
    if name not in old.protecting:
        return None
    return Assignment(_next(old, term), old.since, old.primary, old.standbys, old.protecting - {name}, old.foreign)


def promoted(old: Assignment, name: str, term: int | None = None) -> Assignment | None:
    """The primary is gone: a standby that protects it takes over. The other standbys begin anew with it."""
    return _appoint(old, name, term) if name in old.protecting else None


def handed_over(old: Assignment, name: str, term: int | None = None) -> Assignment | None:
    """A planned promotion, after the standby has reported `Caught` for the current `since`."""
    return _appoint(old, name, term) if name in old.standbys else None


def _appoint(old: Assignment, name: str, term: int | None) -> Assignment:
    epoch = _next(old, term)
    # Standbys of the old version cannot follow a primary of the new one, nor the other way round.
    foreign = name in old.foreign
    standbys = {
        other: mode for other, mode in old.standbys.items() if other != name and (other in old.foreign) == foreign
    }
    return Assignment(epoch, epoch, name, standbys)
