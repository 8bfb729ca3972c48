"""One replica's side of shifts of key groups: the channels of its machine, what the leader has said, what it is told.

What a shift does to records and state is in `penstock.worker.replicated.shifting`, as a part of what is replicated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.exchange.replica.replica import Replica
from penstock.exchange.split.messages import Prepared, Settled, Staged
from penstock.exchange.split.party import Party
from penstock.exchange.split.routing import Phase, Routing, Shift
from penstock.placement.plan import Channel
from penstock.worker.messages import ExecutorId, Reported
from penstock.worker.model import Model
from penstock.worker.replicated.live import Live, is_sink
from penstock.worker.replicated.shifting import pack_event
from penstock.worker.replicated.wiring import everybody, wiring_of

_SAY_AGAIN = 1.0
"""Seconds after which reports to the leader are said once more."""


class Shifts:
    """See the module."""

    def __init__(self, model: Model, executor: ExecutorId) -> None:
        self._model, self._id = model, executor
        load = model.load
        self._wiring = wiring_of(model)
        self.inputs: dict[int, Channel] = {}
        self.outputs: dict[int, Channel] = {}
        self._awaited: set[int] = set()
        """Input channels that may wait to be linked."""
        self._routings: Mapping[int, Routing] = load.routings
        self._said_at = 0.0
        self._know(everybody(load.counts, load.members))

    def _know(self, members: Mapping[str, int]) -> set[int]:
        """Who there is; gives the channels that carry state."""
        ways_in, ways_out = self._wiring.of(self._id, members)
        self._awaited = {channel.id for channel in ways_in}
        self._present = {channel.id for channel in ways_out}
        pieces: set[int] = set()
        record = self._routings.get(self._id.stage)
        if record is not None and record.shift is not None:
            channel = self._wiring.pieces(self._id.stage, record.shift)
            if self._id.index == record.shift.giver:
                ways_out.append(channel)
                pieces.add(channel.id)
            if self._id.index == record.shift.taker:
                ways_in.append(channel)
        self._present |= pieces
        # Earlier ones are remembered: a log may still name them.
        self.inputs |= {channel.id: channel for channel in ways_in}
        self.outputs |= {channel.id: channel for channel in ways_out}
        return pieces

    def connect(self, machine: Replica) -> None:
        """The leader's plan may have changed."""
        model = self._model
        if not model.routings and not self._routings:
            return
        self._routings = model.routings
        pieces = self._know(everybody(model.load.counts, model.members))
        for number in self.inputs:
            machine.add_input(number)
        for number in self._present:
            machine.add_output(number, counted=number not in pieces)
        self._forget(machine)

    def _forget(self, machine: Replica) -> None:
        """Consumers that are gone need nothing any more."""
        for number, line in machine.core.outputs.items():
            if not is_sink(number) and number not in self._present and not line.gone:
                line.drop()

    def waiting(self, live: Live) -> set[int]:
        """Input channels that are there and not linked yet."""
        return self._awaited - live.inbounds.keys() if self._awaited else set()

    def channel(self, number: int) -> Channel:
        """Where a channel leads."""
        return self.inputs.get(number) or self.outputs.get(number) or self._wiring.channel(number)

    def due(self, live: Live) -> list[Any] | None:
        """What the primary has to put into its log."""
        if not self._routings:
            return None
        for stage, party in live.shifting.parties():
            event = party.due()
            if event is not None:
                return ["shift", stage, pack_event(event)]
        return None

    def tend(self, machine: Replica, live: Live, now: float) -> None:
        """The end of a turn of the primary."""
        if not self._routings:
            return
        if len(machine.core.outputs) > len(self._present):
            self._forget(machine)
        again = now > self._said_at + _SAY_AGAIN
        if again:
            self._said_at = now
        for stage, party in live.shifting.parties():
            record = self._routings.get(stage)
            if record is None:
                continue
            self._tell(party, record, machine)
            if again:
                party.silence()
            for report in party.turn(machine.protected_through):
                assert isinstance(report, Prepared | Staged | Settled)
                self._model.around.say(Reported(self._model.name, self._id, machine.name, report))

    def _tell(self, party: Party, record: Routing, machine: Replica) -> None:
        if record.epoch > party.record.epoch:
            party.on_record(record)
        if record.phase is Phase.PREPARING and record.shift is not None and self._open(record.shift, machine):
            party.connected(record.shift.id)

    def _open(self, shift: Shift, machine: Replica) -> bool:
        """Whether the channels of a shift are there. A newcomer is so when it is protected, if it is to be."""
        assignment = machine.core.assignment
        return shift.newcomer != str(self._id) or not assignment.standbys or bool(assignment.protecting)
