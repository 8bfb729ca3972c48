"""Deliberately broken rules. Each replaces one method, and the simulator must find it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import msgspec

from penstock.exchange.split import routing
from penstock.exchange.split.consumer import Consumer
from penstock.exchange.split.coordinator import Coordinator
from penstock.exchange.split.giver import Giver
from penstock.exchange.split.instructions import Adopt, Cut, Forget, Pass, Route, Thaw
from penstock.exchange.split.member import Member
from penstock.exchange.split.messages import Barrier
from penstock.exchange.split.party import Party
from penstock.exchange.split.producer import Producer
from penstock.exchange.split.routing import Phase, Routing
from penstock.exchange.split.taker import Taker

Mutant = tuple[Any, str, Callable[..., Any]]

_reports, _member_reports, _release, _dump = Party._reports, Member._reports, Producer._release, Producer.dump
_given, _taken, _route, _on_piece = Giver.decided, Taker.decided, Producer.route, Member.on_piece
_member_dump, _decided, _next, _switch = Member.dump, Member._decided, Coordinator.next, Producer._switch
_consumer = Consumer.apply


def switch_at_once(producer: Producer) -> Route:
    shift = producer.shift
    if shift is None:
        return _route(producer)
    moving = set(shift.groups)
    table = tuple(shift.taker if g in moving else e for g, e in enumerate(producer.table))
    return Route(table, max(table) + 1, None)


def go_on_as_before(producer: Producer) -> Route:
    return Route(producer.table, max(producer.table) + 1, None)


def cut_at_the_first_barrier(giver: Giver) -> list[Any]:
    if giver.shift is None or giver.cut or not giver.arrived:
        return []
    giver.cut = True
    return [Cut(giver.shift)]


def said_when_executed(party: Party, shift: Any, secured: int) -> Any:
    return _reports(party, shift, 1 << 60)


def staged_when_executed(member: Member, shift: Any, secured: int) -> Any:
    return _member_reports(member, shift, 1 << 60 if member.record.phase is Phase.SWITCHING else secured)


def no_watermark_held(producer: Producer, edge: int, value: int) -> frozenset[int]:
    return frozenset()


def no_end_held(producer: Producer, edge: int) -> frozenset[int]:
    producer.ended.add(edge)
    return frozenset()


def release_to_the_other(producer: Producer, shift: Any, committed: bool) -> Any:
    other = shift.giver if committed else shift.taker
    told = _release(producer, shift, committed)
    return [one._replace(executor=other) if isinstance(one, Pass) else one for one in told]


def release_backwards(producer: Producer, shift: Any, committed: bool) -> Any:
    producer.held.reverse()
    return _release(producer, shift, committed)


def forget_what_was_held(producer: Producer, shift: Any, committed: bool) -> Any:
    return [one for one in _release(producer, shift, committed) if not isinstance(one, Pass)]


def held_is_not_stored(producer: Producer) -> Any:
    return msgspec.structs.replace(_dump(producer), held=[])


def arrived_is_not_stored(member: Member) -> Any:
    state = _member_dump(member)
    state.giver.arrived = set()
    return state


def keep_what_was_given(giver: Giver, committed: bool) -> Any:
    return [Thaw(one.shift) if isinstance(one, Forget) else one for one in _given(giver, committed)]


def drop_what_was_frozen(giver: Giver, committed: bool) -> Any:
    return [Forget(one.shift) if isinstance(one, Thaw) else one for one in _given(giver, committed)]


def without_time(taker: Taker, shift: Any, committed: bool) -> Any:
    return [one._replace(marks={}) if isinstance(one, Adopt) else one for one in _taken(taker, shift, committed)]


def without_waiting_for_time(taker: Taker, position: int) -> None:
    if taker.complete and taker.staged_at is None:
        taker.staged_at = position


def adopt_at_once(member: Member, piece: Any, position: int) -> Any:
    told = _on_piece(member, piece, position)
    return [*told, Adopt(piece.shift, {})] if told else told


def ignore_the_verdict(member: Member, verdict: Any, position: int) -> Any:
    return []


def commit_when_switched(coordinator: Coordinator) -> Any:
    record = coordinator.record
    if record.shift is not None and record.phase is Phase.SWITCHING:
        return routing.committed(record, record.shift.id, coordinator.term)
    return _next(coordinator)


def finish_without_waiting(old: Routing, shift: Any, settled: Any, term: int | None = None) -> Routing | None:
    if old.undecided or old.shift is None or old.shift.id != shift:
        return None
    return Routing((max(old.epoch[0], term or 0), old.epoch[1] + 1), old.version, old.table)


def abandon_at_any_time(old: Routing, shift: Any, term: int | None = None) -> Routing | None:
    if old.phase is Phase.ABANDONED or old.shift is None or old.shift.id != shift:
        return None
    epoch = (max(old.epoch[0], term or 0), old.epoch[1] + 1)
    return msgspec.structs.replace(old, epoch=epoch, phase=Phase.ABANDONED)


def switch_without_asking(old: Routing, shift: Any, prepared: Any, term: int | None = None) -> Routing | None:
    epoch = (max(old.epoch[0], term or 0), old.epoch[1] + 1)
    return msgspec.structs.replace(old, epoch=epoch, phase=Phase.SWITCHING)


def count_no_newcomer(consumer: Consumer, event: Any, position: int) -> Any:
    _consumer(consumer, event, position)
    return []


def any_shift_is_fresh(party: Party, shift: Any, what: str) -> bool:
    return True


def barrier_after_the_switch(producer: Producer, shift: Any) -> Any:
    """One of several barriers is forgotten."""
    told = _switch(producer, shift)
    if sum(isinstance(getattr(one, "frame", None), Barrier) for one in told) > 1:
        del told[0]
    return told


def any_report_counts(coordinator: Coordinator, report: Any) -> Any:
    shift = coordinator.record.shift
    if shift is None:
        return None
    return _on_report(coordinator, msgspec.structs.replace(report, shift=shift.id))


_on_report = Coordinator.on_report

MUTANTS: dict[str, Mutant] = {
    "records go to the taker at once": (Producer, "route", switch_at_once),
    "nothing is held back": (Producer, "route", go_on_as_before),
    "cut at the first barrier": (Giver, "complete", cut_at_the_first_barrier),
    "one barrier is forgotten": (Producer, "_switch", barrier_after_the_switch),
    "prepared and settled before the standby knows": (Party, "_reports", said_when_executed),
    "staged before the standby has it": (Member, "_reports", staged_when_executed),
    "watermarks are not held back": (Producer, "watermark", no_watermark_held),
    "the end is not held back": (Producer, "end", no_end_held),
    "released to the other": (Producer, "_release", release_to_the_other),
    "released backwards": (Producer, "_release", release_backwards),
    "not released": (Producer, "_release", forget_what_was_held),
    "no back-pressure": (Producer, "ready", property(lambda producer: True)),
    "what is held back is not in the checkpoint": (Producer, "dump", held_is_not_stored),
    "barriers are not in the checkpoint": (Member, "dump", arrived_is_not_stored),
    "the giver keeps what it gave": (Giver, "decided", keep_what_was_given),
    "the giver drops what it was to give": (Giver, "decided", drop_what_was_frozen),
    "the newcomer does not take the time over": (Taker, "decided", without_time),
    "a taker does not wait for its own time": (Taker, "check", without_waiting_for_time),
    "the taker does not wait for the commit": (Member, "on_piece", adopt_at_once),
    "the verdict in the channel is ignored": (Member, "on_verdict", ignore_the_verdict),
    "the leader does not wait for the state": (Coordinator, "next", commit_when_switched),
    "the leader does not wait for everybody": (routing, "finished", finish_without_waiting),
    "the leader does not ask before": (routing, "switching", switch_without_asking),
    "the leader abandons what is committed": (routing, "abandoned", abandon_at_any_time),
    "the leader takes any report": (Coordinator, "on_report", any_report_counts),
    "the consumer does not count the newcomer": (Consumer, "apply", count_no_newcomer),
    "messages of an old shift are taken": (Party, "_fresh", any_shift_is_fresh),
    "nothing is said again": (Party, "silence", lambda party: None),
}

STRAGGLING = frozenset({"the newcomer does not take the time over", "a taker does not wait for its own time"})
"""Those that show when a taker is behind the giver."""

__all__ = ["MUTANTS", "STRAGGLING", "broken"]


@contextmanager
def broken(name: str) -> Iterator[None]:
    """One rule is broken meanwhile."""
    owner, attribute, replacement = MUTANTS[name]
    with patch.object(owner, attribute, replacement):
        yield
