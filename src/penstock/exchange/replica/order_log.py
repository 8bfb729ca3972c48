"""The order log: which frame or event an executor took at which position. Positions are dense and begin at 1."""

from __future__ import annotations

from collections.abc import Iterable

from penstock.errors import ExchangeError
from penstock.exchange.replica.messages import Entry, Run, Step

EVENT = -1
"""The channel of a step that is no frame."""


class OrderLog:
    """Positions `start` to `end`; those before `start` have been forgotten."""

    __slots__ = ("_steps", "end", "start")

    def __init__(self, after: int = 0) -> None:
        self.start = after + 1
        self.end = after
        self._steps: dict[int, Step] = {}

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, position: int) -> Step:
        return self._steps[position]

    def append(self, step: Step) -> int:
        """The position that the step got."""
        self.end += 1
        self._steps[self.end] = step
        return self.end

    def receive(self, first: int, entries: Iterable[Entry]) -> bool:
        """Take the unknown part of what was sent. False, and nothing taken, if positions before `first` are missing."""
        if first > self.end + 1:
            return False
        position = first
        for step in _steps(entries):
            if position == self.end + 1:
                self.append(step)
            position += 1
        return True

    def entries(self, first: int) -> tuple[Entry, ...]:
        """Everything from `first` on, in runs. Raises `ExchangeError` when that has been forgotten in part."""
        if first < self.start:
            raise ExchangeError(f"the order log was asked for from {first} on; it begins at {self.start}")
        entries: list[Entry] = []
        for position in range(first, self.end + 1):
            step = self._steps[position]
            if step.channel == EVENT or step.draws:
                entries.append(step)
                continue
            last = entries[-1] if entries else None
            if isinstance(last, Run) and last.channel == step.channel and last.first + last.count == step.seq:
                entries[-1] = Run(last.channel, last.first, last.count + 1)
            else:
                entries.append(Run(step.channel, step.seq, 1))
        return tuple(entries)

    def forget_through(self, position: int) -> None:
        """The positions up to here are not needed any more."""
        for known in range(self.start, min(position, self.end) + 1):
            del self._steps[known]
        self.start = max(self.start, min(position, self.end) + 1)

    def cut_after(self, position: int) -> None:
        """Positions after this one never took effect: they are given anew."""
        while self.end > position:
            self._steps.pop(self.end, None)
            self.end -= 1

    def restart_after(self, position: int) -> None:
        """A checkpoint stands for everything through `position`."""
        if position >= self.end:
            self._steps.clear()
            self.start, self.end = position + 1, position
        else:
            self.forget_through(position)


def _steps(entries: Iterable[Entry]) -> Iterable[Step]:
    for entry in entries:
        if isinstance(entry, Run):
            for seq in range(entry.first, entry.first + entry.count):
                yield Step(entry.channel, seq)
        else:
            yield entry
