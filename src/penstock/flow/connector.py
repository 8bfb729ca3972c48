"""The protocol of sources and sinks; `penstock.connectors` holds the ones that come with the library.

A `Source` and a `Sink` are descriptions (frozen, without open files); `open` gives the thing that does I/O, in the
worker. Readers never block; writers may, for a bounded time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from penstock.clock import Clock, SystemClock
from penstock.flow.operator import StepContext


class EndOfInput(Exception):
    """Raised by `Reader.read` when the partition has ended for good."""


@dataclass
class ConnectorContext:
    """What a reader or writer may know about where it runs."""

    flow: str
    step: str
    index: int = 0
    executors: int = 1
    clock: Clock = field(default_factory=SystemClock)
    wake: Callable[[], None] = lambda: None
    """Make the worker's loop look again now; may be called from any thread."""
    on_bad_record: Callable[[Any, Exception], None] | None = None
    """Called with (what was received, why) for input that cannot be parsed: raises when the flow's policy is to fail,
    returns when the record is counted and skipped."""
    checkpointed: bool = False
    """Whether durable checkpoints are taken, so that a sink should hold its results back until `commit`."""
    collect: Callable[[str, list[Any]], None] | None = None
    """Where the `collect` sink hands records to the process that started the run."""


class Reader(ABC):
    """One open partition of a source. Every method is called from the worker's loop."""

    @abstractmethod
    def read(self, limit: int) -> list[Any]:
        """At most `limit` records, `[]` when there is none right now. Never blocks. Raises `EndOfInput` at the end."""

    @abstractmethod
    def offset(self) -> Any:
        """The position after the last record returned, as a plain value for `Source.open`; `None` if not replayable."""

    def next_at(self) -> float | None:
        """When (clock.monotonic seconds) to read again after an empty read; `None`: only after `wake()`."""
        return None

    def retained(self, offset: Any) -> None:
        """Everything up to `offset` is safe (processed when there are no checkpoints, else in a durable one):
        acknowledge it."""

    def push(self, records: list[Any], client: str | None, seq: int | None) -> bool:
        """For push sources: take records from a gateway; `False` when there is no room. Repeats of (client, seq) are
        taken once."""
        raise TypeError(f"{type(self).__name__} does not take pushed records")

    def lag(self) -> int | None:
        """How much input is known to wait (records or bytes), if that can be told."""
        return None

    def progress(self) -> float | None:
        """The read share of a bounded partition, 0 to 1, if that can be told."""
        return None

    def close(self) -> None:
        """Release everything."""


class Source(ABC):
    """A description of where records come from."""

    bounded: bool = True
    """Whether the input ends."""
    replayable: bool = True
    """Whether `open` with an earlier offset gives the same records again."""

    @abstractmethod
    def partitions(self) -> Sequence[str]:
        """Stable, ordered names of the parts that can be read independently; executor i of n takes every n-th."""

    def shares(self, executors: int) -> Sequence[str]:
        """The partitions when so many executors read: the same as `partitions`, unless there are more of them the more
        executors there are, as with `push`."""
        return self.partitions()

    def restored(self, partition: str, offsets: Mapping[str, Any], executors: int) -> Any | None:
        """Where `partition` goes on, given the offsets of all partitions in a checkpoint; `None`: at its start."""
        return offsets.get(partition)

    @abstractmethod
    def open(self, partition: str, offset: Any | None, ctx: ConnectorContext) -> Reader:
        """Open one partition, from the start (`None`) or after `offset`."""

    def describe(self) -> str:
        """One line for people."""
        return type(self).__name__


class Writer(ABC):
    """One executor's end of a sink.

    Without checkpoints: `write`, `flush` when idle, `close`. With checkpoints (`ctx.checkpointed`): records written
    since the last `prepare` stay invisible; `prepare(n)` makes them durable and returns a plain value from which
    `commit` can make them visible, exactly once, even in another process after a crash.
    """

    transactional: ClassVar[bool] = False
    """Whether prepare/commit/recover give exactly once; otherwise records are written as they come (at least once)."""

    reads_records: ClassVar[bool] = True
    """Whether `write` looks at the records; if not, a list of the right length is enough for it."""

    @abstractmethod
    def write(self, records: list[Any]) -> None:
        """Take records. May buffer up to a bound."""

    def flush(self) -> None:
        """The executor is idle: push out what is buffered (without checkpoints: make it visible)."""

    def prepare(self, checkpoint: int) -> Any:
        """Make everything written since the last `prepare` durable but invisible; return what `commit` needs."""
        self.flush()
        return None

    def commit(self, pending: Any) -> None:
        """The checkpoint is complete: make it visible. Idempotent."""

    def recover(self, pendings: Sequence[Any]) -> None:
        """Called once before the first `write` of a restored run, with what `prepare` returned in the restored
        checkpoint: commit those (they may have been committed already), discard everything later."""
        for pending in pendings:
            self.commit(pending)

    def close(self) -> None:
        """The input ended well: make everything visible and release everything."""

    def abort(self) -> None:
        """The run failed: release everything, leave nothing half-written visible."""


class Sink(ABC):
    """A description of where records go."""

    @abstractmethod
    def open(self, ctx: ConnectorContext) -> Writer:
        """Open this executor's writer."""

    def describe(self) -> str:
        """One line for people."""
        return type(self).__name__


def connector_context(ctx: StepContext, flow: str, **more: Any) -> ConnectorContext:
    """The connector's view of a step's context."""
    return ConnectorContext(
        flow=flow, step=ctx.step, index=ctx.index, executors=ctx.executors, clock=ctx.clock, wake=ctx.wake, **more
    )
