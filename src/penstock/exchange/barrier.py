"""Aligned barriers: when may an executor take its snapshot?

A checkpoint's barrier travels on every channel between the records before it and those after it. An executor takes its
snapshot when the barrier has come on every input; until then the inputs that were faster must wait. This is the aligned
form of Carbone et al., "Lightweight Asynchronous Snapshots for Distributed Dataflows", 2015.

No dead-lock: barriers need no credit, and only what lies behind a barrier ever waits for one. Take the executors that
have not taken the snapshot yet: what they wait for lies before the barrier, so it is held up by none of the blocked
channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from penstock.errors import ExchangeError


@dataclass(frozen=True, slots=True)
class Blocked:
    """The channel must wait: other inputs have not brought the barrier yet."""

    checkpoint: int


@dataclass(frozen=True, slots=True)
class Aligned:
    """Take the snapshot now and pass the barrier on; no channel is blocked any more."""

    checkpoint: int


@dataclass(frozen=True, slots=True)
class Ignored:
    """A repeated barrier, or one of a checkpoint that is past or was given up."""

    checkpoint: int


class Aligner:
    """The barriers of one executor with these input channels.

    The caller asks `blocked` before it processes a frame of a channel (whatever its kind), and asks again after every
    `on_barrier`, `on_end` and `cancel`.
    """

    __slots__ = ("_arrived", "_ended", "_new", "_open", "current", "ignored", "last", "superseded")

    def __init__(self, channels: Iterable[int]) -> None:
        self._open: set[int] = set(channels)
        self._ended: set[int] = set()
        self._new: set[int] = set()
        """Channels that are not waited for yet."""
        self._arrived: set[int] = set()
        self.current: int | None = None
        """The checkpoint being aligned."""
        self.last = -1
        """The newest checkpoint that was aligned or given up."""
        self.ignored = 0
        """Barriers that meant nothing."""
        self.superseded = 0
        """Alignments that a newer checkpoint cut short."""

    def on_barrier(self, channel: int, checkpoint: int) -> Blocked | Aligned | Ignored:
        """The barrier of `checkpoint` is the next thing on `channel`. A newer checkpoint's barrier means that the one
        being aligned was given up: its channels flow again."""
        self._known(channel)
        self._count(channel)
        repeated = channel in self._arrived and checkpoint == self.current
        newest = self.last if self.current is None else max(self.last, self.current - 1)
        if channel in self._ended or checkpoint <= newest or repeated:
            self.ignored += 1
            return Ignored(checkpoint)
        if self.current is not None and checkpoint > self.current:
            self.superseded += 1
            self._close(self.current)
        self.current = checkpoint
        self._arrived.add(channel)
        return self._complete() or Blocked(checkpoint)

    def on_end(self, channel: int) -> Aligned | None:
        """`channel` will bring nothing more, so it holds no barrier up. May complete the current alignment."""
        self._known(channel)
        self._new.discard(channel)
        self._ended.add(channel)
        self._open.discard(channel)
        self._arrived.discard(channel)
        return self._complete()

    def add(self, channel: int) -> None:
        """There is another channel. It is not waited for until its first barrier, or `settle`: a barrier that others
        bring may have passed its producer before it was there."""
        self._new.add(channel)

    def settle(self) -> None:
        """From now on barriers come on all channels, also on new ones."""
        self._open |= self._new
        self._new.clear()

    def remove(self, channel: int) -> Aligned | None:
        """A channel is gone. May complete the current alignment."""
        for channels in (self._open, self._ended, self._arrived, self._new):
            channels.discard(channel)
        return self._complete() if self._open else None

    def _count(self, channel: int) -> None:
        if channel in self._new:
            self._new.discard(channel)
            self._open.add(channel)

    def cancel(self, checkpoint: int) -> None:
        """`checkpoint` and all before it were given up: nothing waits for them any more, and their late barriers are
        ignored."""
        if self.current is not None and self.current <= checkpoint:
            self._close(self.current)
        self.last = max(self.last, checkpoint)

    def blocked(self, channel: int) -> bool:
        """Whether frames of `channel` must wait."""
        return channel in self._arrived

    @property
    def waiting(self) -> frozenset[int]:
        """The channels whose barrier is still to come (empty when nothing is being aligned)."""
        return frozenset() if self.current is None else frozenset(self._open - self._arrived)

    @property
    def finished(self) -> bool:
        """Whether every channel has ended."""
        return not self._open

    def plain(self) -> tuple[int | None, int, list[int]]:
        """An alignment under way, as a plain value for `load`."""
        return self.current, self.last, sorted(self._arrived)

    def load(self, current: int | None, last: int, arrived: Iterable[int]) -> None:
        """Go on with an alignment that `plain` told of; ended channels are told by `on_end`."""
        self.current, self.last, self._arrived = current, last, set(arrived)

    def _known(self, channel: int) -> None:
        if channel not in self._open and channel not in self._ended and channel not in self._new:
            raise ExchangeError(f"channel {channel} is no input of this executor")

    def _complete(self) -> Aligned | None:
        if self.current is None or self._open - self._arrived:
            return None
        checkpoint = self.current
        self._close(checkpoint)
        return Aligned(checkpoint)

    def _close(self, checkpoint: int) -> None:
        self.last = checkpoint
        self.current = None
        self._arrived.clear()
