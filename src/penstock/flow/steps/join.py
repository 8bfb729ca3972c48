"""`join`: pairs of records of two streams that have the same key."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from penstock.errors import FlowError
from penstock.flow.batch import Batch, Rows, as_rows
from penstock.flow.graph import Partitioning, Step
from penstock.flow.horizon import Due, HorizonOperator, split
from penstock.flow.operator import StepContext
from penstock.flow.timers import Timers
from penstock.flow.windows import Session, Sliding, Window

__all__ = ["Join", "JoinOperator", "WindowJoinOperator"]


@dataclass(frozen=True)
class Join(Step):
    """Emit `Keyed(key, (left, right))` for every pair of a record of the first input and one of the second with equal
    keys; either may come first.

    Without `window` every record is kept for ever, unless `within_ms` is given: then only records whose event times
    are at most so far apart are paired, and state is dropped when the watermark has passed. With a tumbling or sliding
    window those are paired that are in the same window. `how="left"` (with a window) also emits `(left, None)` when a
    window closes and held no right record of the key. Records too late for any pair go to the output `late`.
    """

    kind: ClassVar[str] = "join"
    keyed_input: ClassVar[bool] = True
    outputs: ClassVar[tuple[str, ...]] = ("out", "late")

    window: Window | None = None
    how: str = "inner"
    late_ms: int = 0
    within_ms: int | None = None

    def __post_init__(self) -> None:
        problem = remedy = None
        if self.how not in ("inner", "left"):
            problem, remedy = f"how={self.how!r} is not a kind of join", "use 'inner' or 'left'"
        elif self.window is None and self.how == "left":
            problem = "a left join needs a window, or it would never know that no partner comes"
            remedy = "give window=ps.tumbling(…), or use join_latest"
        elif isinstance(self.window, Session):
            problem, remedy = "a join cannot use session windows", "use ps.tumbling or ps.sliding"
        elif self.window is not None and self.within_ms is not None:
            problem, remedy = "a join takes a window or `within`, not both", "leave one of them out"
        if problem is not None:
            raise FlowError(self.name, problem, remedy=remedy, site=self.site or None)

    def operator(self, ctx: StepContext) -> HorizonOperator:
        ctx.site = ctx.site or self.site
        if isinstance(self.window, Sliding):
            return WindowJoinOperator(ctx, self.window, self.how == "left", self.late_ms)
        return JoinOperator(ctx, self.within_ms, self.late_ms)

    def partitioning(self, inputs: tuple[Partitioning, ...]) -> Partitioning:
        return Partitioning.PARTITIONED


Sides: TypeAlias = tuple[list[tuple[int | None, Any]], list[tuple[int | None, Any]]]
"""The state of a key: (time, value) of the left records, and of the right ones."""


class JoinOperator(HorizonOperator):
    """The join without windows. A pair has the later of its two times, if they have times."""

    def __init__(self, ctx: StepContext, within_ms: int | None, late_ms: int) -> None:
        super().__init__(ctx, late_ms)
        self._within = within_ms
        self._timers = Timers()

    def process(self, port: int, batch: Batch) -> None:
        self.arrived(port, batch, needs_time=self._within is not None)
        rows = self._on_time(as_rows(batch))
        if not rows.values:
            return
        times: list[Any] = rows.times if rows.times is not None else [None] * len(rows)
        keys: list[Hashable] = []
        pairs: list[tuple[Any, Any]] = []
        at: list[Any] = []
        for key, value, time in zip(rows.keys or [], rows.values, times, strict=True):
            sides = self._remember(key, port, time, value)
            for other_time, other in sides[1 - port]:
                if self._within is not None and abs(time - other_time) > self._within:
                    continue
                keys.append(key)
                pairs.append((value, other) if port == 0 else (other, value))
                at.append(None if time is None or other_time is None else max(time, other_time))
        if pairs:
            self.out.send(Rows(pairs, keys, None if None in at else at, self.lane, rows.origin))

    def _on_time(self, rows: Rows) -> Rows:
        within = self._within
        if within is None or min(rows.times or []) + within >= self.horizon:
            return rows
        rows, late = split(rows, [i for i, time in enumerate(rows.times or []) if time + within < self.horizon])
        self.send_late(late)
        return rows

    def _remember(self, key: Hashable, port: int, time: int | None, value: Any) -> Sides:
        sides: Sides | None = self.state.get(key)
        if sides is None:
            sides = self.state[key] = ([], [])
        sides[port].append((time, value))
        if self._within is not None and time is not None:
            self._timers.set(key, time + self._within + 1)
        return sides

    def close_until(self, horizon: int) -> Due:
        within = self._within
        if within is not None:
            for _, key in self._timers.until(horizon):
                kept = [
                    [(time, value) for time, value in side if time is None or time + within >= horizon]
                    for side in self.state.get(key, ([], []))
                ]
                if kept[0] or kept[1]:
                    self.state[key] = (kept[0], kept[1])
                else:
                    self.state.pop(key, None)
        return Due([], [], [])

    def restored(self) -> None:
        self._timers = Timers()
        if self._within is not None:
            for key, sides in self.state.items():
                for time, _ in (*sides[0], *sides[1]):
                    if time is not None:
                        self._timers.set(key, time + self._within + 1)

    def dump(self, value: Sides) -> list[Any]:
        return [[list(entry) for entry in side] for side in value]

    def load(self, plain: list[Any]) -> Sides:
        left, right = ([(time, value) for time, value in side] for side in plain)
        return left, right


class WindowJoinOperator(HorizonOperator):
    """The join by windows. A pair has the last time of its window, so that pairs are never late for a later step."""

    def __init__(self, ctx: StepContext, window: Sliding, left: bool, late_ms: int) -> None:
        super().__init__(ctx, late_ms)
        self._window = window
        self._left = left
        self._timers = Timers()

    def process(self, port: int, batch: Batch) -> None:
        self.arrived(port, batch)
        rows, window, horizon = as_rows(batch), self._window, self.horizon
        if window.last_end(min(rows.times or [])) <= horizon:
            late = [i for i, time in enumerate(rows.times or []) if window.last_end(time) <= horizon]
            rows, lost = split(rows, late)
            self.send_late(lost)
        out: tuple[list[Hashable], list[Any], list[int]] = ([], [], [])
        for key, value, time in zip(rows.keys or [], rows.values, rows.times or [], strict=True):
            for start in window.starts(time):
                end = start + window.size_ms
                if end > horizon:
                    others = self._remember(key, start, port, value)[1 - port]
                    out[0].extend([key] * len(others))
                    out[1].extend([(value, other) if port == 0 else (other, value) for other in others])
                    out[2].extend([end - 1] * len(others))
        if out[1]:
            self.out.send(Rows(out[1], out[0], out[2], self.lane, rows.origin))

    def _remember(self, key: Hashable, start: int, port: int, value: Any) -> list[list[Any]]:
        windows: dict[int, list[list[Any]]] = self.state.setdefault(key, {})
        sides = windows.get(start)
        if sides is None:
            sides = windows[start] = [[], []]
            self._timers.set(key, start + self._window.size_ms)
        sides[port].append(value)
        return sides

    def close_until(self, horizon: int) -> Due:
        due = Due([], [], [])
        for end, key in self._timers.until(horizon):
            windows = self.state[key]
            left, right = windows.pop(end - self._window.size_ms)
            if not windows:
                del self.state[key]
            if self._left and not right:
                due.keys.extend([key] * len(left))
                due.values.extend([(value, None) for value in left])
                due.times.extend([end - 1] * len(left))
        return due

    def restored(self) -> None:
        self._timers = Timers()
        for key, windows in self.state.items():
            for start in windows:
                self._timers.set(key, start + self._window.size_ms)

    def dump(self, value: dict[int, list[list[Any]]]) -> list[Any]:
        return [[start, left, right] for start, (left, right) in value.items()]

    def load(self, plain: list[Any]) -> dict[int, list[list[Any]]]:
        return {start: [left, right] for start, left, right in plain}
