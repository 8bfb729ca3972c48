"""Which executor owns which key group: the record that the leader moves by compare-and-set.

At most one **shift** is under way: some key groups are to go from one executor (the giver) to another (the taker). When
the taker is new this is a split; when the giver is left without a group it is a merge. These functions are the only
legal changes; each returns `None` when the change must not be made, so that a decision taken on old knowledge has no
effect.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum

import msgspec

from penstock.errors import ExchangeError
from penstock.exchange.frame import Epoch
from penstock.exchange.keys import even_routing
from penstock.settings import KEY_GROUPS

MOST_EXECUTORS = KEY_GROUPS - 1
"""A producer that holds records back needs one number beside those of the executors."""


class Phase(Enum):
    """How far a shift is."""

    PREPARING = "preparing"
    """The taker is started, channels are opened; nothing is held back yet."""
    SWITCHING = "switching"
    """Producers send barriers and hold back; the giver sends its state to the taker."""
    COMMITTED = "committed"
    """The taker owns the groups: producers release to it, the giver forgets."""
    ABANDONED = "abandoned"
    """The giver still owns the groups: producers release to it, the taker forgets."""


class Shift(msgspec.Struct, frozen=True):
    """Key groups on their way from one executor of a stage to another."""

    id: Epoch
    """The epoch of the record in which it began: never used twice, and growing."""
    giver: int
    taker: int
    groups: tuple[int, ...]
    parties: tuple[str, ...]
    """Who takes part and exists already: all producers and consumers, the giver, and a taker that is not new."""
    newcomer: str = ""
    """The name of a taker that is started for this; it is thrown away if the shift is abandoned."""
    retires: bool = False
    """The giver is left without a group: when the shift is committed and finished it is released."""

    @property
    def everybody(self) -> frozenset[str]:
        """The parties and the newcomer."""
        return frozenset((*self.parties, self.newcomer)) - {""}


class Routing(msgspec.Struct, frozen=True):
    """The routing of one keyed stage."""

    epoch: Epoch
    """Grows with every change."""
    version: int
    """Grows with every commit."""
    table: tuple[int, ...]
    """Key group -> executor."""
    shift: Shift | None = None
    phase: Phase | None = None
    """Of the shift."""

    @property
    def executors(self) -> tuple[int, ...]:
        """Those that own a group."""
        return tuple(sorted(set(self.table)))

    @property
    def undecided(self) -> bool:
        """Whether a shift is under way that may still be abandoned."""
        return self.phase in (Phase.PREPARING, Phase.SWITCHING)

    def groups(self, executor: int) -> tuple[int, ...]:
        """What an executor owns."""
        return tuple(group for group, owner in enumerate(self.table) if owner == executor)

    def waited_for(self) -> frozenset[str]:
        """Who has to be told how the decided shift ended, before another one begins."""
        if self.shift is None:
            return frozenset()
        return self.shift.everybody if self.phase is Phase.COMMITTED else frozenset(self.shift.parties)


def first(executors: int, epoch: Epoch = (1, 1)) -> Routing:
    """The routing of a stage that starts with so many executors."""
    return Routing(epoch, 0, even_routing(executors))


def began(
    old: Routing,
    giver: int,
    taker: int,
    groups: Iterable[int],
    parties: Iterable[str],
    newcomer: str = "",
    term: int | None = None,
) -> Routing | None:
    """Groups of `giver` are to go to `taker`. `None` while another shift is not finished, or when the giver does not
    own all of them. `newcomer` is given if, and only if, the taker owns nothing yet. Raises `ExchangeError` for what is
    no shift at all."""
    moving = tuple(sorted(set(groups)))
    if not moving or giver == taker or not 0 <= taker < MOST_EXECUTORS:
        raise ExchangeError(
            f"{len(moving)} key groups cannot go from executor {giver} to executor {taker}",
            remedy=f"move at least one group between two executors, numbered 0 to {MOST_EXECUTORS - 1}",
        )
    if old.shift is not None or not set(moving) <= set(old.groups(giver)):
        return None
    if bool(newcomer) == (taker in old.executors):
        return None
    retires = len(moving) == len(old.groups(giver))
    if newcomer and retires:
        return None  # that would be a move, and those are the business of the replica
    epoch = _next(old, term)
    shift = Shift(epoch, giver, taker, moving, tuple(sorted(set(parties))), newcomer, retires)
    return Routing(epoch, old.version, old.table, shift, Phase.PREPARING)


def switching(old: Routing, shift: Epoch, prepared: Collection[str], term: int | None = None) -> Routing | None:
    """Everybody has opened the channels: producers may hold back from now on."""
    if not _is(old, shift, Phase.PREPARING) or old.shift is None or not old.shift.everybody <= set(prepared):
        return None
    return msgspec.structs.replace(old, epoch=_next(old, term), phase=Phase.SWITCHING)


def committed(old: Routing, shift: Epoch, term: int | None = None) -> Routing | None:
    """The taker has said that it has the state (`Staged`): this is the commit."""
    if not _is(old, shift, Phase.SWITCHING) or old.shift is None:
        return None
    moving, taker = set(old.shift.groups), old.shift.taker
    table = tuple(taker if group in moving else owner for group, owner in enumerate(old.table))
    return Routing(_next(old, term), old.version + 1, table, old.shift, Phase.COMMITTED)


def abandoned(old: Routing, shift: Epoch, term: int | None = None) -> Routing | None:
    """Something failed, or took too long, before the commit."""
    if not old.undecided or old.shift is None or old.shift.id != shift:
        return None
    return msgspec.structs.replace(old, epoch=_next(old, term), phase=Phase.ABANDONED)


def finished(old: Routing, shift: Epoch, settled: Collection[str], term: int | None = None) -> Routing | None:
    """Everybody has said that it has acted on the decision, and that its standbys know."""
    if old.undecided or old.shift is None or old.shift.id != shift or not old.waited_for() <= set(settled):
        return None
    return Routing(_next(old, term), old.version, old.table)


def restored(old: Routing, term: int | None = None) -> Routing:
    """All executors of the model are started anew, from a durable checkpoint or empty: nobody remembers a shift. What
    was decided stays; what was not is as if it had never begun."""
    return Routing(_next(old, term), old.version, old.table)


def _is(record: Routing, shift: Epoch, phase: Phase) -> bool:
    return record.shift is not None and record.shift.id == shift and record.phase is phase


def _next(old: Routing, term: int | None) -> Epoch:
    return (max(old.epoch[0], term or 0), old.epoch[1] + 1)
