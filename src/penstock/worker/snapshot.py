"""An executor's state as bytes, and back: what one part of a durable checkpoint contains."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from penstock import codec
from penstock.errors import CheckpointError
from penstock.exchange.keys import Router, key_group
from penstock.exchange.split.routing import Routing
from penstock.flow.batch import IDLE, MIN_TIME
from penstock.flow.chain import Chain
from penstock.flow.operator import KeyedOperator
from penstock.placement.plan import Channel
from penstock.worker.messages import ExecutorId
from penstock.worker.sinks import SinkOperator, naming


class Part(msgspec.Struct):
    """One executor's part. Trees are `codec.pack`ed values."""

    executor: tuple[int, int]
    finished: bool
    offsets: dict[str, dict[str, Any]] = {}
    """source step -> partition -> packed offset."""
    keyed: dict[str, tuple[Any, Any]] = {}
    """step -> (packed keys, packed states)."""
    local: dict[str, Any] = {}
    """step -> packed local state."""
    sinks: dict[str, Any] = {}
    """sink step -> packed pending value."""
    watermarks: dict[int, int] = {}
    """edge -> the least watermark of its channels."""

    def pending(self) -> dict[str, Any]:
        """What each sink needs to make this checkpoint's records visible."""
        return {name: codec.unpack(node)[0] for name, node in self.sinks.items()}

    def positions(self) -> dict[tuple[str, str], Any]:
        """(source step, partition) -> offset."""
        return {
            (step, partition): codec.unpack(node)[0]
            for step, offsets in self.offsets.items()
            for partition, node in offsets.items()
        }


_decoder = msgspec.msgpack.Decoder(Part)


class Restorable(Protocol):
    """What of an executor is stored and restored."""

    id: ExecutorId
    chain: Chain
    ended: bool
    restored_finished: bool

    @property
    def inbounds(self) -> Mapping[int, Channelled]: ...
    @property
    def lanes(self) -> Sequence[Positioned]: ...
    @property
    def sinks(self) -> Mapping[str, SinkOperator]: ...


class Channelled(Protocol):
    """An input channel and its event time."""

    channel: Channel
    watermark: int

    def advance(self, watermark: int) -> None: ...


class Positioned(Protocol):
    """A partition of a source."""

    step: str
    partition: str

    def position(self) -> Any:
        """The offset after what was processed."""
        ...


def take(executor: Restorable, checkpoint: int) -> Part:
    """The executor's state now. Sinks make their records durable on the way."""
    part = Part((executor.id.stage, executor.id.index), executor.ended)
    _take_offsets(executor, part)
    for name, operator in executor.chain.operators.items():
        with naming(name, "its state cannot be stored: "):
            if isinstance(operator, KeyedOperator):
                states = [operator.dump(state) for state in operator.state.values()]
                part.keyed[name] = (codec.pack(list(operator.state)), codec.pack(states))
            local = operator.dump_local()
            if local is not None:
                part.local[name] = codec.pack([local])
    for name, sink in executor.sinks.items():
        part.sinks[name] = codec.pack([sink.prepare(checkpoint)])
    for inbound in executor.inbounds.values():
        edge = inbound.channel.edge.id
        known = part.watermarks.get(edge)
        mark = MIN_TIME if inbound.watermark == IDLE else inbound.watermark
        part.watermarks[edge] = mark if known is None else min(known, mark)
    return part


def add_sink(part: Part, step: str, pending: Any) -> None:
    """What a sink has prepared for the part's checkpoint."""
    part.sinks[step] = codec.pack([pending])


def without_keys(executor: Restorable) -> Part:
    """What is needed to commit a part of an executor without sinks: its offsets."""
    part = Part((executor.id.stage, executor.id.index), executor.ended)
    _take_offsets(executor, part)
    return part


def _take_offsets(executor: Restorable, part: Part) -> None:
    for lane in executor.lanes:
        part.offsets.setdefault(lane.step, {})[lane.partition] = codec.pack([lane.position()])


def without_state(part: Part) -> Part:
    """What is needed of a part to commit it: offsets and pending values of sinks."""
    return Part(part.executor, part.finished, part.offsets, sinks=part.sinks)


def write(part: Part) -> bytes:
    """The part as bytes."""
    return msgspec.msgpack.encode(part)


def read(data: bytes) -> Part:
    """The inverse of `write`. Raises `CheckpointError`."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise CheckpointError(f"a checkpoint part cannot be read: {error}") from error


def offsets_of(parts: list[Part], step: str) -> dict[str, Any]:
    """partition -> offset of one source step, over all parts of its stage."""
    return {
        partition: offset for part in parts for (name, partition), offset in part.positions().items() if name == step
    }


def restore_operators(executor: Restorable, part: Part) -> None:
    """Give an executor exactly the state of operators that `take` found."""
    for name, operator in executor.chain.operators.items():
        if isinstance(operator, KeyedOperator):
            if name in part.keyed:
                keys, states = (codec.unpack(node) for node in part.keyed[name])
                operator.state.update(zip(keys, map(operator.load, states), strict=True))
            operator.restored()
        if name in part.local:
            operator.load_local([codec.unpack(part.local[name])[0]])


def restore(executor: Restorable, executors: int, parts: list[Part]) -> None:
    """Give an executor (index i of `executors`) its share of the stage's former parts: the keys it owns now, the local
    states and pending sink records of every n-th former executor. Sources are opened at their offsets before."""
    index = executor.id.index
    router = Router(executors)
    alone = len(parts) == executors
    for name, operator in executor.chain.operators.items():
        if isinstance(operator, KeyedOperator):
            for part in [parts[index]] if alone else parts:
                if name in part.keyed:
                    keys, states = (codec.unpack(node) for node in part.keyed[name])
                    for key, state in zip(keys, states, strict=True):
                        if alone or router.executor(key) == index:
                            operator.state[key] = operator.load(state)
            operator.restored()
        local = [codec.unpack(part.local[name])[0] for part in parts[index::executors] if name in part.local]
        if local:
            operator.load_local(local)
    for name, sink in executor.sinks.items():
        sink.recover([part.pending()[name] for part in parts[index::executors] if name in part.sinks])
    executor.restored_finished = _finished(executor, executors, parts)
    for inbound in executor.inbounds.values():
        marks = [part.watermarks.get(inbound.channel.edge.id, MIN_TIME) for part in parts]
        if min(marks) > MIN_TIME:
            inbound.advance(min(marks))


def mine(parts: list[Part], index: int, members: Collection[int]) -> list[Part]:
    """The parts that executor `index` of a stage goes on from: its own, and for the first of its members those of
    executors that are no more."""
    return [
        part
        for part in parts
        if part.executor[1] == index or (part.executor[1] not in members and index == min(members))
    ]


def owed(parts: list[Part], index: int, executors: int, record: Routing | None) -> dict[str, list[Any]]:
    """Sink -> what executor `index` of a stage has to make visible. `record`: of a stage that has ever changed."""
    shares = parts[index::executors] if record is None else mine(parts, index, record.executors)
    pendings = [part.pending() for part in shares]
    steps = {step for pending in pendings for step in pending}
    return {step: [pending[step] for pending in pendings if step in pending] for step in steps}


def restore_by_table(executor: Restorable, table: Sequence[int], members: Collection[int], parts: list[Part]) -> None:
    """`restore` for an executor of a keyed stage with such a routing, whatever the routing was when the checkpoint was
    taken."""
    index = executor.id.index
    own = mine(parts, index, members)
    for name, operator in executor.chain.operators.items():
        if isinstance(operator, KeyedOperator):
            for part in parts:
                if name in part.keyed:
                    keys, states = (codec.unpack(node) for node in part.keyed[name])
                    for key, state in zip(keys, states, strict=True):
                        if table[key_group(key)] == index:
                            operator.state[key] = operator.load(state)
        local = [codec.unpack(part.local[name])[0] for part in own or parts if name in part.local]
        if local:
            operator.load_local(local)
        if isinstance(operator, KeyedOperator):
            operator.restored()
    executor.restored_finished = any(part.finished for part in own if part.executor[1] == index)
    for inbound in executor.inbounds.values():
        marks = [part.watermarks.get(inbound.channel.edge.id, MIN_TIME) for part in parts if not part.finished]
        if marks and min(marks) > MIN_TIME:
            inbound.advance(min(marks))


def _finished(executor: Restorable, executors: int, parts: list[Part]) -> bool:
    """Whether all that this executor takes over had come to its end before, with its last results sent.

    Raises `CheckpointError` when former executors that had and ones that had not would have to share their keys.
    """
    if len(parts) == executors:
        return parts[executor.id.index].finished
    done = [part.finished for part in parts]
    if any(done) and not all(done) and any(part.keyed for part in parts):
        raise CheckpointError(
            f"some of the {len(parts)} executors of stage {executor.id.stage} had finished when the checkpoint was "
            f"taken, so that their state cannot be divided among {executors}",
            remedy=f"start with {len(parts)} executors again",
        )
    return all(done)
