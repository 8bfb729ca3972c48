"""What is known of load and traffic: measurements smoothed over time, which fade when nothing confirms them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from penstock.errors import UsageError
from penstock.placement.plan import ExecutorKey, ExecutorLoad, Problem, Traffic

Pair = tuple[ExecutorKey, ExecutorKey]
_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class _Known:
    """A smoothed measurement of one thing."""

    values: tuple[float, ...]
    at: float
    """When it was last measured or faded."""
    seen: float
    """When it was last measured."""


class Monitor:
    """Smoothed loads and traffic. Pure: the caller tells the time, in seconds of one clock.

    A measurement counts half as much after `half_life`. What a measurement leaves out is taken for silent: it fades,
    and is forgotten when it was not seen for `window`. Memory is bounded by what was seen within a window.
    """

    def __init__(self, half_life: float = 5.0, window: float = 30.0) -> None:
        if not 0 < half_life <= window:
            raise UsageError(f"a monitor needs 0 < half_life <= window, not {half_life} and {window} s")
        self._half_life, self._window = half_life, window
        self._cpu: dict[ExecutorKey, _Known] = {}
        self._sizes: dict[ExecutorKey, tuple[int, int]] = {}
        self._traffic: dict[Pair, _Known] = {}
        self._latest: float | None = None

    def observe(self, now: float, load: Mapping[ExecutorKey, ExecutorLoad], traffic: Mapping[Pair, Traffic]) -> None:
        """What is measured at `now`: all executors and pairs that are alive. An earlier time than the last one is
        ignored: clocks of two observers may differ."""
        if self._latest is not None and now < self._latest:
            return
        self._latest = now
        self._cpu = self._smoothed(now, self._cpu, {key: (own.cpu,) for key, own in load.items()})
        flows = {pair: (flow.records, flow.bytes) for pair, flow in traffic.items() if flow.records or flow.bytes}
        self._traffic = self._smoothed(now, self._traffic, flows)
        self._sizes |= {key: (own.memory, own.state) for key, own in load.items()}
        self._sizes = {key: sizes for key, sizes in self._sizes.items() if key in self._cpu}

    def _smoothed(
        self, now: float, known: Mapping[_Key, _Known], measured: Mapping[_Key, tuple[float, ...]]
    ) -> dict[_Key, _Known]:
        found: dict[_Key, _Known] = {}
        for key, old in known.items():
            if key not in measured and now - old.seen <= self._window:
                weight = self._weight(now - old.at)
                found[key] = _Known(tuple(value * weight for value in old.values), now, old.seen)
        for key, values in measured.items():
            before = known.get(key)
            if before is not None and now - before.seen <= self._window:
                weight = self._weight(now - before.at)
                values = tuple(a * weight + b * (1 - weight) for a, b in zip(before.values, values, strict=True))
            found[key] = _Known(values, now, now)
        return found

    def load(self, now: float) -> dict[ExecutorKey, ExecutorLoad]:
        """What executors use, as far as is known at `now`. CPU fades, sizes do not."""
        return {
            key: ExecutorLoad(self._faded(known, now)[0], *self._sizes[key])
            for key, known in self._cpu.items()
            if now - known.seen <= self._window
        }

    def traffic(self, now: float) -> dict[Pair, Traffic]:
        """What flows, as far as is known at `now`."""
        return {
            pair: Traffic(*self._faded(known, now))
            for pair, known in self._traffic.items()
            if now - known.seen <= self._window
        }

    def problem(self, base: Problem, now: float) -> Problem:
        """A problem with what is known of its executors."""
        wanted = set(base.executors)
        return replace(
            base,
            load={key: own for key, own in self.load(now).items() if key in wanted},
            traffic={pair: flow for pair, flow in self.traffic(now).items() if wanted.issuperset(pair)},
        )

    def _faded(self, known: _Known, now: float) -> tuple[float, ...]:
        """A value as it is at `now`: the time since the last measurement counts as silence, beyond one half-life."""
        silent = max(0.0, now - known.at - self._half_life)
        return tuple(value * self._weight(silent) for value in known.values)

    def _weight(self, seconds: float) -> float:
        return float(0.5 ** (seconds / self._half_life))
