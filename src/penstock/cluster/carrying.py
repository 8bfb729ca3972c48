"""Moves that were decided, handed out a few at a time; pure.

Each is asked for as a planned move of its executor. When the world has changed meanwhile, what was decided for it is
worth nothing any more and the rest is dropped: a better plan is made from what there is then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from penstock.cluster.measuring import homes
from penstock.cluster.view import View
from penstock.placement.explain import Move
from penstock.placement.plan import ExecutorKey

_NOTICED = 10.0
"""Seconds in which a move that was asked for shows up in what is planned."""


@dataclass(frozen=True)
class _UnderWay:
    move: Move
    since: float
    seen: bool = False
    """Whether it has shown up."""


class Carrier:
    """`moving(view)` tells which executors have a planned move under way. The caller tells the time."""

    def __init__(self, at_once: int, moving: Callable[[View], frozenset[ExecutorKey]]) -> None:
        self._at_once, self._moving = max(1, at_once), moving
        self._waiting: list[Move] = []
        self._under_way: dict[ExecutorKey, _UnderWay] = {}
        self._generations: Mapping[str, int] = {}

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self._waiting or self._under_way)

    def begin(self, moves: Iterable[Move], view: View) -> None:
        """Decided for `view`; what was decided before is dropped."""
        self._waiting = list(moves)
        self._under_way = {}
        self._generations = {name: state.entry.generation for name, state in view.models.items()}

    def drop(self) -> None:
        """Ask for nothing more. What is under way goes on."""
        self._waiting, self._under_way = [], {}

    def failed(self, move: Move) -> None:
        """It could not be asked for: its model stays as it is."""
        self._give_up(move.executor.model)

    def next(self, now: float, view: View) -> list[Move]:
        """The moves to ask for now."""
        home, moving = homes(view), self._moving(view)
        for key, state in list(self._under_way.items()):
            if key in moving:
                self._under_way[key] = _UnderWay(state.move, state.since, True)
            elif home.get(key) == state.move.target.node:
                del self._under_way[key]
            elif state.seen or now > state.since + _NOTICED or key not in home:
                self._give_up(key.model)
        begun = []
        while self._waiting and len(self._under_way) < self._at_once:
            move = self._waiting.pop(0)
            if not self._still_right(move, home, view):
                self._give_up(move.executor.model)
                continue
            self._under_way[move.executor] = _UnderWay(move, now)
            begun.append(move)
        return begun

    def _still_right(self, move: Move, home: Mapping[ExecutorKey, str], view: View) -> bool:
        state = view.models.get(move.executor.model)
        target = view.members.get(move.target.node)
        return (
            state is not None
            and state.entry.generation == self._generations.get(move.executor.model)
            and home.get(move.executor) == move.source.node
            and target is not None
            and target.live
        )

    def _give_up(self, model: str) -> None:
        self._waiting = [move for move in self._waiting if move.executor.model != model]
        self._under_way = {key: state for key, state in self._under_way.items() if key.model != model}
