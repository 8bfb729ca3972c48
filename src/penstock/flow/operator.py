"""What a step is while it runs: batches in, batches out, no I/O, no threads of its own.

An operator lives inside one executor. The executor calls `process` and `advance`; the operator calls `self.out.send`
and `self.out.advance`. Both run depth-first through the fused chain, so an operator must be done with its own state
before it sends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

from penstock.clock import Clock, SystemClock
from penstock.flow.batch import Batch
from penstock.flow.draws import Draws


class Outlet(Protocol):
    """Where an operator's results go: the next operator of the chain, or a channel to another executor."""

    def send(self, batch: Batch) -> None:
        """Pass a non-empty batch on."""
        ...

    def advance(self, lane: int, watermark: int) -> None:
        """Say that `lane` will bring no event time below `watermark` (ms). `MIN_TIME` opens a lane, `IDLE` takes it
        out of the minimum until its next batch, `END_TIME` finishes it."""
        ...


class FailurePolicy(Protocol):
    """What happens when the author's code raises: see `penstock.flow.failure`."""

    def __call__(self, ctx: StepContext, record: Any, error: Exception) -> None:
        """Raise `StepError`, or return when the record is to be skipped."""
        ...


def _raise(ctx: StepContext, record: Any, error: Exception) -> None:
    raise error


@dataclass
class StepContext:
    """What an operator may know about where it runs."""

    step: str
    """The step's name."""
    index: int = 0
    """This executor's number within its stage, from 0."""
    executors: int = 1
    """How many executors the stage has."""
    bounded: bool = True
    """Whether the whole input is known to end."""
    clock: Clock = field(default_factory=SystemClock)
    config: dict[str, Any] = field(default_factory=dict)
    on_error: FailurePolicy = _raise
    wake: Callable[[], None] = lambda: None
    """Make the executor's loop look again; may be called from any thread."""
    counters: Counter[str] = field(default_factory=Counter)
    """Named counts shown in metrics: `late`, `skipped`, `dead_letter` …"""
    site: str = ""
    """Where the author wrote the step (`file.py:12`); operators with the author's functions fill it in."""
    draws: Draws | None = None
    """In a replicated executor: where results of calls to the outside are written down, and given again."""
    detail: str = ""
    """What else an error says of a step that the author did not write under this name, such as `on='ts'`."""


class Operator:
    """The root of all operators. Override `process`; the rest has sensible meanings."""

    def __init__(self, ctx: StepContext) -> None:
        self.ctx = ctx
        self.outs: tuple[Outlet, ...] = ()

    def connect(self, outs: tuple[Outlet, ...]) -> None:
        """Called once by the chain: one outlet per output of the step."""
        self.outs = outs

    @property
    def out(self) -> Outlet:
        """The first output."""
        return self.outs[0]

    def process(self, port: int, batch: Batch) -> None:
        """Take one batch from input `port`."""
        raise NotImplementedError

    def advance(self, port: int, lane: int, watermark: int) -> None:
        """Event time moved on `lane`; by default every output hears the same."""
        for out in self.outs:
            out.advance(lane, watermark)

    def finish(self) -> None:
        """All input has ended (called once, upstream steps first): emit what is left."""

    def poll(self) -> None:
        """Pass on results of work in the background (called after `ctx.wake`, and now and then)."""

    def pending(self) -> int:
        """Records accepted and not yet passed on, for operators that work in the background."""
        return 0

    def drain(self) -> None:
        """Block until `pending()` is 0, with a deadline; called before a snapshot and before `finish`."""

    def close(self) -> None:
        """Release what was opened. Called once, also after an error."""

    def dump_local(self) -> Any:
        """State that belongs to this executor rather than to a key, as a plain value; `None` when there is none."""
        return None

    def load_local(self, plain: list[Any]) -> None:
        """Take back what `dump_local` returned: one entry per former executor of the stage that is now ours."""


class KeyedOperator(Operator):
    """An operator whose state is one value per key; the executor snapshots, restores, moves and looks it up."""

    def __init__(self, ctx: StepContext) -> None:
        super().__init__(ctx)
        self.state: dict[Hashable, Any] = {}

    def dump(self, value: Any) -> Any:
        """The state of one key as something the codec can write (the default: as it is)."""
        return value

    def load(self, plain: Any) -> Any:
        """The inverse of `dump`."""
        return plain

    def restored(self) -> None:
        """`state` was just filled: rebuild whatever is derived from it (timers, indexes)."""

    def give_up(self, goes: Callable[[Hashable], bool]) -> tuple[dict[Hashable, Any], Any]:
        """Take keys out of the state: what they have, and how far event time had come with them."""
        going = [key for key in self.state if goes(key)]
        states = {key: self.state.pop(key) for key in going}
        self.restored()
        return states, None

    def take_over(self, states: dict[Hashable, Any], progress: Any) -> None:
        """Put in what `give_up` gave, here or in another executor."""
        self.state.update(states)
        self.restored()

    def view(self, value: Any) -> Any:
        """What a look-up of one key shows to a user."""
        return self.dump(value)
