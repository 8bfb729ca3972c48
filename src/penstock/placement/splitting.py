"""When an executor of a keyed stage is split, which key groups go, and when two are merged again (SYSTEMS Z4).

Pure: the caller tells the time, in seconds of one clock, and what was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from penstock.errors import UsageError
from penstock.flow.hot_keys import HotKey
from penstock.settings import KEY_GROUPS

MOST_EXECUTORS = KEY_GROUPS - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPolicy:
    """When splitting and merging is worth it. Times in seconds."""

    full: float = 0.5
    """An executor is under pressure while its input buffer is filled beyond this share."""
    sustained: float = 2.0
    """It is split after so long under pressure without a break."""
    cooldown: float = 10.0
    """After a split or merge of the stage nothing is done for so long: its effect has to show first."""
    relief: float = 0.8
    """A split must leave neither half with more than this share of the load; otherwise it would not help."""
    most: int = 16
    """Executors of the stage, at most."""
    least: int = 1
    """Executors of the stage that are not merged any further."""
    merge_below: float = 0.3
    """Two executors are merged when one of them could do the work of both in this share of its time …"""
    idle_for: float = 120.0
    """… and that has been so for this long."""

    def __post_init__(self) -> None:
        for name, low, high in (("full", 0.0, 1.0), ("merge_below", 0.0, 1.0), ("relief", 0.5, 1.0)):
            value = getattr(self, name)
            if not low < value < high:
                raise UsageError(
                    f"a split policy cannot have {name}={value!r}", remedy=f"give a share between {low:g} and {high:g}"
                )
        for name in ("sustained", "cooldown", "idle_for"):
            if not getattr(self, name) >= 0:
                raise UsageError(
                    f"a split policy cannot have {name}={getattr(self, name)!r}", remedy="give seconds, 0 or more"
                )
        if not 1 <= self.least <= self.most <= MOST_EXECUTORS:
            raise UsageError(
                f"a stage cannot have {self.least} to {self.most} executors",
                remedy=f"give 1 <= least <= most <= {MOST_EXECUTORS}",
            )
        if self.idle_for < self.cooldown:
            raise UsageError(
                f"executors would be merged after {self.idle_for:g} s of idleness, before the cool-down of"
                f" {self.cooldown:g} s has shown what the last split was good for",
                remedy="make idle_for longer than cooldown",
            )


@dataclass(frozen=True, slots=True)
class Measured:
    """An executor, as it was measured."""

    buffered: float = 0.0
    """The share of its input buffer that is in use, 0 to 1; the fullest of its channels."""
    busy: float = 0.0
    """The share of its time in which it works, 0 to 1."""
    groups: Mapping[int, float] = field(default_factory=dict)
    """Key group -> records per second, of those that were seen."""
    hot: HotKey | None = None
    """Its most frequent key."""
    hot_group: int | None = None
    """The key group of that."""


@dataclass(frozen=True, slots=True)
class Split:
    """Give these key groups to a new executor."""

    giver: int
    groups: tuple[int, ...]
    share: float
    """Of the measured load that goes."""
    reason: str


@dataclass(frozen=True, slots=True)
class Merge:
    """Give everything to another executor; the giver goes."""

    giver: int
    taker: int
    groups: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Unsplittable:
    """A split would not help: one key group has most of the load."""

    executor: int
    group: int
    share: float
    key: HotKey | None
    """The key that makes it so; `None`: it is several that share the group."""
    remedy: str

    def __str__(self) -> str:
        what = f"key group {self.group}" if self.key is None else f"key {_short(self.key.key)}"
        return f"executor {self.executor} cannot be split: {what} has {self.share:.0%} of its load\n  -> {self.remedy}"


@dataclass(frozen=True, slots=True)
class Stay:
    """Nothing is to be done."""

    reason: str


Decision: TypeAlias = Split | Merge | Unsplittable | Stay


class Splitting:
    """The decisions of one stage. `associative`: whether its reduction may be applied to parts (a sum, a `combine`).

    It remembers since when executors are under pressure or idle, which a new leader begins to learn anew.
    """

    def __init__(self, policy: SplitPolicy | None = None, *, associative: bool = False) -> None:
        self.policy = policy or SplitPolicy()
        self.associative = associative
        self._pressed: dict[int, float] = {}
        self._idle: dict[tuple[int, int], float] = {}
        self._measured: dict[int, Measured] = {}
        self._changed: float | None = None

    def observe(self, now: float, measured: Mapping[int, Measured]) -> None:
        """What was measured at `now` of all executors of the stage."""
        policy = self.policy
        self._measured = dict(measured)
        pressed = [index for index, one in measured.items() if one.buffered > policy.full]
        self._pressed = {index: self._pressed.get(index, now) for index in pressed}
        pairs = [
            (giver, taker)
            for giver in measured
            for taker in measured
            if giver != taker and self._together(giver, taker) < policy.merge_below
        ]
        self._idle = {pair: self._idle.get(pair, now) for pair in pairs}

    def changed(self, now: float) -> None:
        """A split or merge has ended, whether it was carried out or given up: the cool-down begins."""
        self._changed = now
        self._pressed.clear()
        self._idle.clear()

    def decide(self, now: float, table: Iterable[int], free_slots: int) -> Decision:
        """What is to be done. `table` is the stage's routing (key group -> executor); `free_slots` is the room for
        further executors, with their standbys."""
        policy = self.policy
        if self._changed is not None and now - self._changed < policy.cooldown:
            return Stay(f"the stage was changed {now - self._changed:.0f} s ago, less than {policy.cooldown:.0f} s")
        owned: dict[int, list[int]] = {}
        for group, executor in enumerate(table):
            owned.setdefault(executor, []).append(group)
        pressed = sorted(
            (since, index)
            for index, since in self._pressed.items()
            if now - since >= policy.sustained and index in owned
        )
        if pressed:
            return self._split([index for _, index in pressed], owned, free_slots)
        if self._pressed:
            return Stay(f"the input of executor {min(self._pressed)} is full, but not for {policy.sustained:g} s yet")
        return self._merge(now, owned)

    # ---- splitting --------------------------------------------------------------------------------------------------

    def _split(self, pressed: list[int], owned: Mapping[int, list[int]], free_slots: int) -> Decision:
        policy = self.policy
        if len(owned) >= policy.most:
            return Stay(f"executor {pressed[0]} is overloaded, and the stage has all of its {policy.most} executors")
        if free_slots < 1:
            return Stay(f"executor {pressed[0]} is overloaded, and no slot is free: add nodes or slots")
        blocked: Unsplittable | None = None
        for index in pressed:
            found = self._halve(index, owned[index])
            if isinstance(found, Split):
                return found
            blocked = blocked or found
        assert blocked is not None
        return blocked

    def _halve(self, index: int, groups: list[int]) -> Split | Unsplittable:
        measured = self._measured[index]
        load = {group: measured.groups.get(group, 0.0) for group in groups}
        total = sum(load.values())
        _, goes = halves(load)
        share = sum(load[group] for group in goes) / total if total else len(goes) / len(groups)
        if not goes or max(share, 1 - share) > self.policy.relief:
            return self._unsplittable(index, load, total)
        reason = (
            f"the input of executor {index} is {measured.buffered:.0%} full;"
            f" {len(goes)} of its {len(groups)} key groups have {share:.0%} of its load"
        )
        return Split(index, goes, share, reason)

    def _unsplittable(self, index: int, load: Mapping[int, float], total: float) -> Unsplittable:
        measured = self._measured[index]
        group = max(load, key=lambda one: (load[one], -one))
        share = load[group] / total if total else 1.0
        hot = measured.hot
        if hot is None or measured.hot_group != group or hot.most < share / 2:
            remedy = "its keys hash into one group, and no split divides a group: give them another key"
            return Unsplittable(index, group, share, None, remedy)
        remedy = (
            "let producers pre-combine its values: give the reduction a combine"
            if self.associative
            else "one key is one executor's: make the key finer, or the reduction associative, to be combined before"
        )
        return Unsplittable(index, group, min(share, hot.most), hot, remedy)

    # ---- merging ----------------------------------------------------------------------------------------------------

    def _together(self, giver: int, taker: int) -> float:
        return self._measured[giver].busy + self._measured[taker].busy

    def _merge(self, now: float, owned: Mapping[int, list[int]]) -> Decision:
        policy = self.policy
        if len(owned) <= policy.least:
            return Stay("no executor is under pressure")
        ready = [
            (self._together(giver, taker), len(owned[giver]), -giver, taker)
            for (giver, taker), since in self._idle.items()
            if now - since >= policy.idle_for and giver in owned and taker in owned
        ]
        if not ready:
            return Stay("no executor is under pressure, and none has been idle for long")
        together, _, negative, taker = min(ready)
        giver = -negative
        reason = f"executors {giver} and {taker} together have been busy for less than {policy.merge_below:.0%} of one"
        reason += f" for {policy.idle_for:.0f} s (now {together:.0%})"
        return Merge(giver, taker, tuple(owned[giver]), reason)


def halves(load: Mapping[int, float]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two parts of nearly equal load: what stays, and what goes, which is the part of fewer groups.

    The greatest load first, each to the lighter part (Graham's LPT rule: the heavier part is at most 7/6 of the best
    possible), then groups of which nothing is known, by number.
    """
    parts: list[list[int]] = [[], []]
    weights = [0.0, 0.0]
    for group in sorted(load, key=lambda one: (-load[one], one)):
        lighter = min((0, 1), key=lambda part: (weights[part], len(parts[part]), part))
        if not load[group]:
            lighter = min((0, 1), key=lambda part: (len(parts[part]), part))
        parts[lighter].append(group)
        weights[lighter] += load[group]
    stays, goes = sorted(parts, key=lambda part: (-len(part), part))
    return tuple(sorted(stays)), tuple(sorted(goes))


def _short(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 80 else text[:77] + "..."
