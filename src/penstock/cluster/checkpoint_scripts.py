"""The leader's scripts for durable checkpoints: numbers, and what is on record.

Two hashes in Redis hold it, `checkpoints` (model -> `CheckpointRecord`) and `checkpoint-numbers` (model -> the greatest
number that was ever begun). Only the leader changes them, and each script checks its term.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from penstock.cluster.bus import Bus
from penstock.cluster.checkpoint_record import CheckpointRecord


class NotLeading(Exception):
    """Somebody else leads by now."""


class Records:
    """The scripts. All raise `NotLeading` when `term` is over, and `BusDown`."""

    def __init__(self, bus: Bus, node: str) -> None:
        self._bus, self._node = bus, node

    async def begin(self, term: int, model: str, generation: int, plan: str, used: int) -> int | None:
        """The number of a new checkpoint, greater than `used` and than all before. `plan` is the SHA-1 of the plan
        whose executors take part. `None`: the model or its plan have changed."""
        keys = self._keys("leader", "models", f"plan:{model}", "checkpoint-numbers")
        code = await self._bus.script("checkpoint_begin", keys, [self._node, term, model, generation, plan, used])
        return _checked(code) or None

    async def unchanged(self, term: int, model: str, generation: int, plan: str) -> bool:
        """Whether the model and its plan are what they were when the checkpoint began."""
        return await self._write(term, model, generation, plan, "", 0)

    async def complete(self, term: int, model: str, plan: str, record: CheckpointRecord) -> bool:
        """Put on record that a checkpoint is complete; `False` when the model or its plan have changed."""
        return await self._write(term, model, record.generation, plan, _text(record), record.number)

    async def note(self, term: int, model: str, record: CheckpointRecord) -> bool:
        """Put on record what became of attempts; `False` when there is a later checkpoint than in `record`."""
        return await self._write(term, model, record.generation, "", _text(record), record.number)

    async def correct(self, term: int, model: str, record: CheckpointRecord) -> bool:
        """Put on record what the store has, whatever was on record, and wake everybody."""
        done = await self._write(term, model, record.generation, "", _text(record), "")
        await self._bus.ring()
        return done

    async def _write(
        self, term: int, model: str, generation: int, plan: str, text: str, number: int | str
    ) -> bool:  # fmt: skip
        keys = self._keys("leader", "models", f"plan:{model}", "checkpoints")
        arguments: list[str | int] = [self._node, term, model, generation, plan, text, number]
        return bool(_checked(await self._bus.script("checkpoint_write", keys, arguments)))

    async def forget(self, term: int, models: Sequence[str]) -> None:
        """Remove what is known of models that are offline or deleted."""
        keys = self._keys("leader", "models", "checkpoints", "checkpoint-numbers")
        _checked(await self._bus.script("checkpoint_forget", keys, [self._node, term, *models]))

    def _keys(self, *names: str) -> list[str]:
        return [self._bus.key(name) for name in names]


def _checked(code: int | str) -> int:
    if int(code) < 0:
        raise NotLeading
    return int(code)


def _text(record: CheckpointRecord) -> str:
    return msgspec.json.encode(record).decode()
