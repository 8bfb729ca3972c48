"""Deliberately broken rules. Each replaces one method, and the simulator must find it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from penstock.exchange.frame import Epoch
from penstock.exchange.replica.core import Core
from penstock.exchange.replica.instructions import Party
from penstock.exchange.replica.lines import NEVER, OutputLine
from penstock.exchange.replica.messages import Ack, Caught, Log
from penstock.exchange.replica.primary import Primary
from penstock.exchange.replica.replica import Replica
from penstock.exchange.replica.standby import Standby

from .world import Sink

Mutant = tuple[type, str, Callable[..., Any]]

_release, _apply = OutputLine.release, Core.apply
_prepared, _on_checkpoint, _checkpoint = Standby.prepared, Standby.on_checkpoint, Primary.checkpoint
_forget = Primary._forget
_take_over, _fit, _silence, _move = Primary.take_over, Standby.fit, Primary.silence, Standby.move
_neighbour, _from_primary, _from_standby = Replica._neighbour, Replica._from_primary, Replica._from_standby


def release_at_once(line: OutputLine, through: int | None, epoch: Epoch) -> Any:
    return _release(line, None, epoch)


def own_order(standby: Standby) -> str:
    reason = _fit(standby)
    standby.acked = min(standby.acked, standby.core.executed)  # the rest is ordered anew
    return reason


def acknowledge_log_alone(standby: Standby, again: bool = False) -> None:
    core = standby.core
    if standby.synced:
        held = {number: line.next_seq for number, line in core.inputs.items()}
        ack = Ack(core.since, standby.session, core.log.end, core.executed, standby.executing, held)
        core.send(Party.REPLICA, core.assignment.primary, ack)


def discard_on_receipt(standby: Standby, message: Any) -> None:
    _on_checkpoint(standby, message)
    if standby.pending is message and standby.synced:
        standby.core.log.restart_after(message.position)
        for number, taken in message.marks.items():
            standby.core.inputs[number].forget_through(taken)


def safe_when_processed(primary: Primary) -> int:
    return primary.core.executed


def safe_when_sent(primary: Primary, cut: Any, state: Any) -> None:
    _checkpoint(primary, cut, state)
    for follower in primary.followers.values():
        if follower.pending is not None and follower.synced:
            follower.applied = follower.acked = follower.pending.position
            follower.held = {number: taken + 1 for number, taken in follower.pending.marks.items()}


def nothing_kept_for_a_cut(primary: Primary) -> None:
    cut, primary.cut = primary.cut, None
    _forget(primary)
    primary.cut = cut


def forget_epochs_between_replicas(replica: Replica, message: Any, *rest: Any) -> None:
    handle = _from_standby if rest else _from_primary
    handle(replica, _as_of(message, replica.core.since), *rest)


def _as_of(message: Any, epoch: Epoch) -> Any:
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    return type(message)(**{**fields, "epoch": epoch})


def acknowledge_after_promotion(replica: Replica, message: Any) -> None:
    """The promoted standby goes on serving the old primary."""
    core = replica.core
    if isinstance(replica.role, Primary) and isinstance(message, Log) and message.epoch < core.since:
        last = message.first + sum(getattr(entry, "count", 1) for entry in message.entries) - 1
        held = {number: line.next_seq for number, line in core.inputs.items()}
        for name in (f"{core.name.split('.')[0]}.{n}" for n in range(12)):
            if name != core.name:
                core.send(Party.REPLICA, name, Ack(message.epoch, 1, last, last, False, held))
        return
    _from_primary(replica, message)


def resume_one_later(primary: Primary) -> None:
    for line in primary.core.inputs.values():
        line.restart(line.next_seq)
    _take_over(primary)


def trust_own_count(line: OutputLine, next_seq: int, consumed: int, safe: int) -> None:
    if not line.open:
        line.next_seq = max(line.next_seq, next_seq + 1)
    _confirm(line, next_seq, consumed, safe)


_confirm = OutputLine.confirm


def without_draws(core: Core, work: Any, emitted: Any, draws: Any) -> None:
    _apply(core, work, emitted, ())


def degrade_by_itself(primary: Primary) -> None:
    core = primary.core
    for number, line in core.outputs.items():
        for frame in line.release(None, core.since)[0]:
            core.send(Party.CONSUMER, number, frame)
    _silence(primary)


def complete_at_once(primary: Primary, follower: Any) -> bool:
    return bool(follower.gating and follower.synced)


def without_unacknowledged_output(standby: Standby, position: int) -> None:
    pending = standby.pending
    if pending is not None and pending.position == position:
        standby.pending = _without_outputs(pending)
    _prepared(standby, position)


def _without_outputs(checkpoint: Any) -> Any:
    fields = {name: getattr(checkpoint, name) for name in checkpoint.__struct_fields__}
    return type(checkpoint)(**{**fields, "outputs": dict.fromkeys(checkpoint.outputs, ())})


def caught_too_early(standby: Standby) -> None:
    core = standby.core
    if standby.handover is not None:
        standby.caught = True
        core.report(Caught(core.since, core.name, core.executed))


def handover_of_state_alone(standby: Standby, message: Any) -> None:
    if standby.synced and message.session == standby.session:
        standby.handover = message
        standby.caught = standby.caught or standby.core.executed == message.position
        standby.reach_handover()


def go_on_after_handover(primary: Primary, follower: Any) -> None:
    _say_handover(primary, follower)
    primary.stopped = False


_say_handover = Primary.say_handover


def take_any_epoch(replica: Replica, message: Any) -> None:
    lines: Any = replica.core.inputs if message.channel in replica.core.inputs else replica.core.outputs
    lines[message.channel].epoch = NEVER
    if hasattr(message, "producer"):
        fields = {name: getattr(message, name) for name in message.__struct_fields__}
        message = type(message)(**{**fields, "producer": NEVER})
    _neighbour(replica, message)


def sink_takes_any(sink: Sink, message: Any) -> Any:
    sink.line.epoch = NEVER
    return _sink(sink, message)


_sink = Sink.on_message


def never_compare(standby: Standby) -> None:
    standby.core.digests.clear()
    standby.theirs.clear()


def never_ask_again(primary: Primary) -> None:
    """Silence is not answered."""


MUTANTS: dict[str, Mutant] = {
    "no output rule": (OutputLine, "release", release_at_once),
    "own arrival order": (Standby, "fit", own_order),
    "acknowledged without the inputs": (Standby, "acknowledge", acknowledge_log_alone),
    "discarded before the checkpoint is applied": (Standby, "on_checkpoint", discard_on_receipt),
    "safe when processed": (Primary, "_safe_through", safe_when_processed),
    "what comes while the state is taken is forgotten": (Primary, "_forget", nothing_kept_for_a_cut),
    "safe when the checkpoint is sent": (Primary, "checkpoint", safe_when_sent),
    "no fencing of the old primary's log": (Replica, "_from_primary", forget_epochs_between_replicas),
    "nobody fences the old primary": (Replica, "_from_primary", acknowledge_after_promotion),
    "resumes one frame later": (Primary, "take_over", resume_one_later),
    "numbers output by itself": (OutputLine, "confirm", trust_own_count),
    "draws are not logged": (Core, "apply", without_draws),
    "degrades by itself": (Primary, "silence", degrade_by_itself),
    "complete at once": (Primary, "_complete", complete_at_once),
    "unacknowledged output is not in the checkpoint": (Standby, "prepared", without_unacknowledged_output),
    "caught too early": (Standby, "reach_handover", caught_too_early),
    "output is not handed over": (Standby, "on_handover", handover_of_state_alone),
    "goes on after the hand-over": (Primary, "say_handover", go_on_after_handover),
    "digests are not compared": (Standby, "compare", never_compare),
    "nothing is said again": (Primary, "silence", never_ask_again),
}

__all__ = ["MUTANTS", "broken"]


@contextmanager
def broken(name: str) -> Iterator[None]:
    """One rule is broken meanwhile."""
    owner, attribute, replacement = MUTANTS[name]
    with patch.object(owner, attribute, replacement):
        if name != "nobody fences the old primary":
            yield
            return
        # Each of the two fences alone is enough to keep the old primary's output out.
        with patch.object(Replica, "_neighbour", take_any_epoch), patch.object(Sink, "on_message", sink_takes_any):
            yield
