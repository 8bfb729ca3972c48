"""The general keyed step with state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

from penstock.flow.batch import Batch, Keyed, as_rows
from penstock.flow.graph import Partitioning, Step
from penstock.flow.operator import KeyedOperator, Operator, StepContext

__all__ = ["Fold"]


@dataclass(frozen=True, kw_only=True)
class Fold(Step):
    """`state, output = fn(state, value)` for every record of a key; `Keyed(key, output)` unless the output is `None`.
    A new key starts with `initial`: a value (copied) or a function without arguments that makes one."""

    kind: ClassVar[str] = "fold"
    keyed_input: ClassVar[bool] = True
    keeps_times: ClassVar[bool] = True
    initial: Any
    fn: Callable[[Any, Any], tuple[Any, Any]]

    def operator(self, ctx: StepContext) -> Operator:
        return _FoldOperator(ctx, self)

    def partitioning(self, inputs: tuple[Partitioning, ...]) -> Partitioning:
        return Partitioning.PARTITIONED


_IMMUTABLE = (str, int, float, bool, bytes, type(None), frozenset)


def fresh(initial: Any) -> Callable[[], Any]:
    """How the state of a new key is made."""
    if callable(initial):
        make: Callable[[], Any] = initial
        return make
    if isinstance(initial, _IMMUTABLE):
        return lambda: initial
    return lambda: copy.deepcopy(initial)


class _FoldOperator(KeyedOperator):
    def __init__(self, ctx: StepContext, step: Fold) -> None:
        super().__init__(ctx)
        ctx.site = ctx.site or step.site
        self.fn, self.initial = step.fn, fresh(step.initial)

    def process(self, port: int, batch: Batch) -> None:
        rows = as_rows(batch)
        all_keys = rows.keys or []
        outputs: list[Any] = []
        places: list[int] = []
        done, total = 0, len(rows)
        while done < total:
            done = self._run(all_keys, rows.values, done, outputs, places)
        if not outputs:
            return
        if len(outputs) == total:
            self.out.send(rows.derive(outputs, keys=all_keys, times=rows.times))
            return
        keys: list[Hashable] = [all_keys[i] for i in places]
        times = None if rows.times is None else [rows.times[i] for i in places]
        self.out.send(rows.derive(outputs, keys=keys, times=times))

    def _run(self, keys: list[Hashable], values: list[Any], start: int, outputs: list[Any], places: list[int]) -> int:
        """Fold from record `start` on, up to the end or past the first record that fails; where to go on."""
        state, fn = self.state, self.fn
        at = start
        try:
            for at in range(start, len(keys)):
                key = keys[at]
                before = state[key] if key in state else self.initial()
                state[key], output = fn(before, values[at])
                if output is not None:
                    outputs.append(output)
                    places.append(at)
        except Exception as error:
            self.ctx.on_error(self.ctx, Keyed(keys[at], values[at]), _explained(error))
            return at + 1
        return len(keys)


def _explained(error: Exception) -> Exception:
    """An error of unpacking in the loop above comes from what `fn` returned, so say what it must return."""
    trace = error.__traceback__
    ours = trace is not None and trace.tb_next is None
    if ours and isinstance(error, (TypeError, ValueError)) and "unpack" in str(error):
        return TypeError(f"the function must return (state, output), with None for no output ({error})")
    return error
