"""When a keyed step tells its results: at every change, or once when the input has ended."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Literal, TypeAlias

from penstock.flow.batch import END_TIME, MIN_TIME, Rows
from penstock.flow.operator import KeyedOperator, StepContext

__all__ = ["EMISSIONS", "Emission", "ResultOperator"]

Emission: TypeAlias = Literal["update", "final"]
EMISSIONS = ("update", "final")


class ResultOperator(KeyedOperator):
    """A keyed operator with one result per key. With `final`, subclasses send nothing while records come; when the
    input has ended every key's `result` is sent once. Event time is then held back too, so that a window further down
    does not take the results for late records."""

    def __init__(self, ctx: StepContext, final: bool) -> None:
        super().__init__(ctx)
        self.final = final
        self._lanes: list[int] = []

    def result(self, key: Hashable, state: Any) -> Any:
        """What is sent for a key whose state is `state`."""
        return state

    def advance(self, port: int, lane: int, watermark: int) -> None:
        if not self.final:
            super().advance(port, lane, watermark)
        elif lane not in self._lanes:
            self._lanes.append(lane)
            super().advance(port, lane, min(watermark, MIN_TIME))

    def finish(self) -> None:
        if not self.final:
            return
        keys = list(self.state)
        lane = self._lanes[0] if self._lanes else 0
        for start in range(0, len(keys), _CHUNK):
            self._send(keys[start : start + _CHUNK], lane)
        for opened in self._lanes:
            super().advance(0, opened, END_TIME)

    def _send(self, keys: list[Hashable], lane: int) -> None:
        self.send_results(keys, [self.result(key, self.state[key]) for key in keys], lane)

    def send_results(self, keys: list[Hashable], results: list[Any], lane: int, origin: int = 0) -> None:
        """Send `Keyed(keys[i], results[i])` for every i."""
        if results:
            self.out.send(Rows(results, keys, lane=lane, origin=origin))


_CHUNK = 1024
"""Results are sent in batches of so many records, like any other."""
