"""The channels of a model whose stages grow and shrink while it runs.

The executors that a model starts with have the channels of `penstock.placement.plan.channels`, with their numbers. An
executor that comes later brings channels of its own. Their numbers say where they lead and when the younger end was
born, so they are the same everywhere and none is ever used twice.
"""

from __future__ import annotations

from collections.abc import Mapping

from penstock.exchange.split.routing import Shift
from penstock.flow.graph import EdgeShape, Topology
from penstock.placement.plan import Channel, channels
from penstock.worker.messages import ExecutorId
from penstock.worker.model import Model

_BIRTH, _EDGE, _INDEX = 15, 9, 12
"""Bits: two births, an edge, two indexes."""
_PIECES = 1 << (_EDGE - 1)
"""In place of an edge: the channel from a giver to its taker, of the stage in the lower bits."""
LATER = 1 << (_EDGE + 2 * _INDEX)
"""Channels of executors that came later are numbered from here."""
LAST_BIRTH = (1 << _BIRTH) - 1
MOST_EDGES = _PIECES
MOST_INDEX = (1 << _INDEX) - 1


class Wiring:
    """See the module. `counts`: the executors per stage that the model started with."""

    def __init__(self, topology: Topology, counts: Mapping[int, int]) -> None:
        self.topology = topology
        self._base = {channel.id: channel for channel in channels(topology, counts)}
        self._numbers = {(c.edge.id, c.producer_index, c.consumer_index): c.id for c in self._base.values()}
        self._edges = {edge.id: edge for edge in topology.edges}

    def channel(self, number: int) -> Channel:
        """What a channel's number says."""
        if number < LATER:
            return self._base[number]
        kind = number >> 2 * _INDEX & (1 << _EDGE) - 1
        producer, consumer = number >> _INDEX & MOST_INDEX, number & MOST_INDEX
        edge = _pieces(kind - _PIECES) if kind >= _PIECES else self._edges[kind]
        return Channel(number, edge, edge.source_stage, producer, edge.target_stage, consumer)

    def between(self, edge: int, producer: int, consumer: int, births: tuple[int, int]) -> Channel:
        """The channel along an edge; `births` of producer and consumer, 0: from the beginning."""
        if births == (0, 0):
            return self._base[self._numbers[edge, producer, consumer]]
        return self.channel(_number(births, edge, producer, consumer))

    def pieces(self, stage: int, shift: Shift) -> Channel:
        """The channel on which a shift's state travels."""
        return self.channel(_number(divmod(shift.id[1], LAST_BIRTH + 1), _PIECES | stage, shift.giver, shift.taker))

    def of(self, executor: ExecutorId, members: Mapping[str, int]) -> tuple[list[Channel], list[Channel]]:
        """The channels into and out of an executor, given who there is (executor -> birth)."""
        here = (executor.stage, executor.index)
        born = {_place(name): birth for name, birth in members.items()}
        mine = born.get(here, 0)
        ways_in, ways_out = [], []
        for channel in () if mine else self._base.values():
            producer = (channel.producer_stage, channel.producer_index)
            consumer = (channel.consumer_stage, channel.consumer_index)
            if consumer == here and born.get(producer) == 0:
                ways_in.append(channel)
            if producer == here and born.get(consumer) == 0:
                ways_out.append(channel)
        for (stage, index), birth in sorted(born.items()):
            for edge in self.topology.edges if mine or birth else ():
                if (edge.source_stage, edge.target_stage) == (stage, executor.stage):
                    ways_in.append(self.between(edge.id, index, executor.index, (birth, mine)))
                if (edge.source_stage, edge.target_stage) == (executor.stage, stage):
                    ways_out.append(self.between(edge.id, executor.index, index, (mine, birth)))
        return sorted(ways_in, key=_id), sorted(ways_out, key=_id)


def wiring_of(model: Model) -> Wiring:
    """A model's; it is made once."""
    if model.wiring is None:
        model.wiring = Wiring(model.graph.topology, model.load.counts)
    return model.wiring


def everybody(counts: Mapping[int, int], members: Mapping[str, int]) -> Mapping[str, int]:
    """Who there is: executor -> birth. `members` is empty as long as nothing has ever changed."""
    return members or {str(ExecutorId(s, i)): 0 for s, count in counts.items() for i in range(count)}


def _number(births: tuple[int, int], edge: int, producer: int, consumer: int) -> int:
    return ((births[0] << _BIRTH | births[1]) << _EDGE | edge) << 2 * _INDEX | producer << _INDEX | consumer


def _id(channel: Channel) -> int:
    return channel.id


def _place(name: str) -> tuple[int, int]:
    stage, _, index = name.partition(".")
    return int(stage), int(index)


def _pieces(stage: int) -> EdgeShape:
    return EdgeShape(-1, stage, "", 0, stage, "", 0, "pieces")
