"""`collect`: records go back to the process that started the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from penstock import codec
from penstock.errors import CodecError, ConnectorError, UsageError
from penstock.flow.connector import ConnectorContext, Sink, Writer


@dataclass(frozen=True)
class Collect(Sink):
    """Made by `collect`."""

    limit: int

    def open(self, ctx: ConnectorContext) -> Writer:
        """A writer that hands records over."""
        return CollectWriter(self.limit, ctx)

    def describe(self) -> str:
        """The limit."""
        return f"collect, at most {self.limit} records"


def collect(limit: int = 1_000_000) -> Collect:
    """Hand every record to the process that started the run, where `limit` per executor bounds the memory: one more
    fails the run with `ConnectorError`. With checkpoints records are handed over when their checkpoint is complete.
    Raises `UsageError` for a limit below 1."""
    if limit < 1:
        raise UsageError(f"collect(limit={limit}): 1 or more were expected")
    return Collect(limit)


class CollectWriter(Writer):
    """Without checkpoints records are handed over at once, with checkpoints at `commit`, each once."""

    transactional: ClassVar[bool] = True

    def __init__(self, limit: int, ctx: ConnectorContext) -> None:
        if ctx.collect is None:
            raise ConnectorError(
                f"step {ctx.step!r}: nobody collects records here",
                remedy="collect() is for runs that a program starts and waits for; use another sink on a cluster",
            )
        self._limit, self._ctx, self._collect = limit, ctx, ctx.collect
        self._count = 0
        self._held: list[Any] = []
        self._prepared: list[tuple[int, bytes]] = []
        self._committed = 0

    def write(self, records: list[Any]) -> None:
        """Take records. Raises `ConnectorError` beyond the limit."""
        self._count += len(records)
        if self._count > self._limit:
            raise ConnectorError(
                f"step {self._ctx.step!r}: more than {self._limit} records were collected",
                remedy="raise collect(limit=…), or write them with ndjson(…) or sql(…)",
            )
        if self._ctx.checkpointed:
            self._held += records
        else:
            self._hand_over(self._ctx.step, list(records))

    def _hand_over(self, step: str, records: list[Any]) -> None:
        try:
            self._collect(step, records)
        except (TypeError, ValueError, RecursionError) as error:
            raise CodecError(
                f"step {step!r}: a record cannot be collected: {error or type(error).__name__}",
                remedy="map it to text, numbers, lists or dictionaries before the sink",
            ) from error

    def prepare(self, checkpoint: int) -> Any:
        """All records that were not handed over yet, by checkpoint."""
        if self._held:
            self._prepared.append((checkpoint, codec.dumps(self._held)))
            self._held = []
        return {"checkpoint": checkpoint, "epochs": list(self._prepared)}

    def commit(self, pending: Any) -> None:
        """Hand over the epochs that were not handed over yet."""
        for checkpoint, data in pending["epochs"]:
            if checkpoint > self._committed:
                self._hand_over(self._ctx.step, codec.loads(data))
                self._committed = checkpoint
        self._committed = max(self._committed, pending["checkpoint"])
        self._prepared = [(n, data) for n, data in self._prepared if n > self._committed]

    def recover(self, pendings: Any) -> None:
        """Hand over what the restored checkpoint holds; each pending counts for itself."""
        for pending in pendings:
            self._committed = 0
            self.commit(pending)

    def close(self) -> None:
        """Hand over the rest."""
        for checkpoint, data in self._prepared:
            if checkpoint > self._committed:
                self._hand_over(self._ctx.step, codec.loads(data))
        if self._held:
            self._hand_over(self._ctx.step, self._held)
        self._prepared, self._held = [], []
