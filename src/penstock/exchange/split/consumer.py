"""A consumer of the stage: it counts the newcomer's channels, so that event time does not run ahead of them."""

from __future__ import annotations

import msgspec

from penstock.exchange.split.instructions import Instruction
from penstock.exchange.split.messages import Event, Open, Outcome
from penstock.exchange.split.party import Party, Progress


class Consumer(Party):
    """See the module. Of a merge it notices nothing but the END of an executor that is left without a group."""

    def apply(self, event: Event, position: int) -> list[Instruction]:
        """An event of the log."""
        if isinstance(event, Open):
            return self._open(event, position)
        if not isinstance(event, Outcome) or not self._fresh(event.shift.id, "outcome"):
            return []
        if event.committed:
            self._settle(event.shift.id, position)
            return []
        return self._given_up(event.shift.id, position)

    def dump(self) -> Progress:
        """What belongs into the executor's state."""
        return msgspec.structs.replace(self.progress)

    def load(self, state: Progress) -> None:
        """Go on from a checkpoint."""
        self.progress = msgspec.structs.replace(state)
