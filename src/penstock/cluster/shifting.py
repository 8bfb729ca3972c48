"""Splits and merges of executors of keyed stages, as the leader carries them out; pure.

The protocol is that of `penstock.exchange.split`, and the record of each stage is a part of the plan, so that every
change of it is checked like one of the plan. What parties have reported is in their run entries: it is looked at anew
each time, so another leader goes on where the former one was. One shift per model at a time; while one is under way, or
wanted, no durable checkpoint begins.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import msgspec

from penstock.cluster import upgrading
from penstock.cluster.plan import ModelState, Plan, RunEntry, ShiftWish, executor_id, present
from penstock.cluster.replicas import Draft, add_standby
from penstock.exchange.replica import assignment
from penstock.exchange.split import routing
from penstock.exchange.split.coordinator import Coordinator
from penstock.exchange.split.messages import Prepared, Settled, Staged
from penstock.exchange.split.routing import MOST_EXECUTORS, Phase, Routing
from penstock.flow.graph import Topology

DEADLINE = 120.0
"""Seconds from the beginning of a shift to its commit; then it is given up. What waits before the giver has to be
processed first."""
MOST_SHIFTS = (1 << 15) - 16
"""Changes of one stage's record: channels have so many bits for when an executor was added."""


def obstacle(topology: Topology, stage: int) -> str:
    """Why executors of a stage can neither be split nor merged; empty when they can."""
    shape = topology.stages[stage]
    steps = ", ".join(shape.steps)
    if not shape.keyed or shape.has_source:
        return f"stage {stage} ({steps}) has no keys by which its input could be divided"
    for edge in topology.edges:
        if stage in (edge.source_stage, edge.target_stage) and edge.kind != "shuffle":
            return (
                f"stage {stage} ({steps}) goes straight from step {edge.source_step} to step {edge.target_step}, "
                "executor by executor"
            )
    return ""


def record_of(plan: Plan, stage: int) -> Routing:
    """Who owns which key group of a keyed stage. Its epoch is beyond all of the plan: no two shifts have one name."""
    record = plan.routings.get(stage) or routing.first(plan.counts[stage])
    epochs = [record.epoch, *(other.epoch for other in plan.routings.values())]
    return msgspec.structs.replace(record, epoch=(max(t for t, _ in epochs), max(n for _, n in epochs)))


def under_way(plan: Plan) -> tuple[int, Routing] | None:
    """The shift that is not finished: its stage and record."""
    return next(((stage, r) for stage, r in plan.routings.items() if r.shift is not None), None)


def shown(plan: Plan) -> str:
    """The shift that is under way, for people; empty when there is none."""
    found = under_way(plan)
    if found is None or found[1].shift is None or found[1].phase is None:
        return ""
    stage, shift = found[0], found[1].shift
    groups = f"{len(shift.groups)} key groups of executor {stage}.{shift.giver}"
    return f"{groups} go to {stage}.{shift.taker}: {found[1].phase.value}"


def key_groups(plan: Plan) -> dict[str, int]:
    """How many key groups executors have, of stages that were ever split or merged."""
    owned = {(stage, index): 0 for stage in plan.routings for index in plan.indexes(stage)}
    for stage, record in plan.routings.items():
        for index in record.executors:
            owned[stage, index] = len(record.groups(index))
    return {f"{stage}.{index}": count for (stage, index), count in sorted(owned.items())}


def newcomer(plan: Plan) -> str:
    """The executor that is being added and owns nothing yet; empty when there is none."""
    found = under_way(plan)
    return found[1].shift.newcomer if found is not None and found[1].undecided and found[1].shift is not None else ""


def parties(topology: Topology, executors: Collection[str], stage: int, members: Collection[int]) -> set[str]:
    """Everybody who takes part in a shift between these members: them, and all producers and consumers."""
    near = {e.source_stage for e in topology.edges if e.target_stage == stage}
    near |= {e.target_stage for e in topology.edges if e.source_stage == stage}
    return {e for e in executors if executor_id(e).stage in near} | {f"{stage}.{index}" for index in members}


def advance(draft: Draft, state: ModelState, lost: Collection[str]) -> Iterator[float]:
    """One step. `lost`: executors whose primary is not well. Yields when to look again."""
    found = under_way(draft.plan)
    if found is not None:
        if draft.routings == draft.plan.routings:  # otherwise it was given up just now
            yield from _go_on(draft, state, *found, lost)
        return
    _release(draft, state.run)
    for stage, wish in sorted(state.shifts.items()):
        if wish.generation != draft.plan.generation or draft.now > wish.deadline:
            _refuse(draft, stage, wish, "it could not begin in time")
        elif upgrading.under_way(state) or draft.handovers or state.moves or lost or _checkpointing(state):
            yield draft.now + 0.2
        else:
            _begin(draft, state, stage, wish)
            return


def _checkpointing(state: ModelState) -> bool:
    """A plan that nobody has connected yet, or whose executors do not all run, has nothing to divide."""
    plan = state.plan
    assert plan is not None
    known = [present(plan, state.run, plan.seat(executor)) for executor in plan.executors]
    return any(entry is None or entry.state != "running" for entry in known) or any(
        state.connected.get(node, 0) < plan.revision for node in plan.nodes()
    )


def _refuse(draft: Draft, stage: int, wish: ShiftWish, why: str) -> None:
    draft.settle(str(stage))
    what = "split" if wish.taker < 0 else "merged"
    draft.say("split.failed", f"executor {stage}.{wish.giver} of {draft.plan.model} was not {what}: {why}", "warning")


def _begin(draft: Draft, state: ModelState, stage: int, wish: ShiftWish) -> None:
    plan, topology = draft.plan, state.entry.topology
    assert topology is not None
    why = obstacle(topology, stage)
    old = record_of(plan, stage)
    taker = wish.taker
    if taker < 0:
        used = {executor_id(executor).index for executor in plan.executors if executor_id(executor).stage == stage}
        taker = next((index for index in range(MOST_EXECUTORS) if index not in used), -1)
        if taker < 0:
            why = why or f"the stage has {MOST_EXECUTORS} executors"
    if old.epoch[1] > MOST_SHIFTS:
        why = why or "its stage has been changed too often; take the model offline and online again"
    members = (wish.giver,) if wish.taker < 0 else (wish.giver, taker)
    name = f"{stage}.{taker}" if wish.taker < 0 else ""
    record = None
    if not why:
        everybody = parties(topology, plan.executors, stage, members)
        record = routing.began(old, wish.giver, taker, wish.groups, everybody, name, draft.term)
    if record is None or record.shift is None:
        _refuse(draft, stage, wish, why or f"executor {wish.giver} does not own these key groups any more")
        return
    if name:
        node = _node(draft)
        primary = draft.seat(name, node)
        draft.add_executor(name, assignment.first(primary, (draft.term, plan.revision + 1)), record.shift.id[1])
        add_standby(draft, name)
    draft.route(stage, record)
    draft.shift_since = draft.now
    draft.settle(str(stage))
    where = f"a new executor {name} on node {draft.node(draft.records[name].primary)}" if name else f"{stage}.{taker}"
    text = f"{len(record.shift.groups)} key groups of executor {stage}.{wish.giver} of {plan.model} go to {where}"
    draft.say("executor.splitting" if name else "executor.merging", f"{text}: {wish.reason}")


def _node(draft: Draft) -> str:
    """The node with the least to do."""
    load = dict.fromkeys(draft.live, 0)
    for node in (*draft.elsewhere.values(), *(seat.node for seat in draft.replicas.values())):
        if node in load:
            load[node] += 1
    return min(load, key=lambda node: (load[node], node))


def _go_on(draft: Draft, state: ModelState, stage: int, record: Routing, lost: Collection[str]) -> Iterator[float]:
    coordinator = Coordinator(record, draft.term)
    change = coordinator.next()
    for executor, assigned in draft.records.items():
        entry = state.run.get(assigned.primary)
        for report in () if entry is None or executor in lost else entry.reports:
            if isinstance(report, Prepared | Staged | Settled):
                change = coordinator.on_report(report) or change
    if change is None and record.undecided:
        late = draft.shift_since + DEADLINE
        if draft.now > late:
            give_up(draft, stage, record, f"it did not come so far in {DEADLINE:.0f} s")
        elif upgrading.under_way(state):
            give_up(draft, stage, record, "the model is being updated")
        else:
            yield late + 0.1
    elif change is not None:
        draft.route(stage, change)
        if change.phase is Phase.COMMITTED:
            _tell(draft, stage, change)


def _tell(draft: Draft, stage: int, record: Routing) -> None:
    shift, model = record.shift, draft.plan.model
    assert shift is not None
    groups = f"{len(shift.groups)} key groups"
    if shift.newcomer:
        draft.say(
            "executor.split", f"executor {stage}.{shift.giver} of {model} is split: {shift.newcomer} has {groups}"
        )
    elif shift.retires:
        text = f"executor {stage}.{shift.giver} of {model} is merged into {stage}.{shift.taker}, which has its {groups}"
        draft.say("executor.merged", text)


def give_up(draft: Draft, stage: int, record: Routing, why: str) -> None:
    """The giver keeps what it has, and a newcomer goes."""
    after = Coordinator(record, draft.term).give_up()
    shift = record.shift
    if after is None or shift is None:
        return
    draft.route(stage, after)
    if shift.newcomer:
        draft.remove_executor(shift.newcomer)
    what = "split" if shift.newcomer else "merged"
    text = f"executor {stage}.{shift.giver} of {draft.plan.model} was not {what} and goes on as before: {why}"
    draft.say("split.failed", text, "warning")


def bereave(draft: Draft, executor: str) -> bool:
    """An executor has lost its primary and nobody takes over; whether that is no loss, because it owned nothing."""
    found = under_way(draft.plan)
    if found is None or executor != newcomer(draft.plan):
        return False
    give_up(draft, *found, "the new executor was lost")
    return True


def _release(draft: Draft, run: Mapping[str, RunEntry]) -> None:
    """Executors that have given everything away go when their output has been taken."""
    for executor, record in list(draft.records.items()):
        stage, entry = executor_id(executor).stage, run.get(record.primary)
        table = draft.plan.routings.get(stage)
        empty = table is not None and executor_id(executor).index not in table.executors
        if empty and entry is not None and entry.state == "finished":
            draft.remove_executor(executor)


def restored(plan: Plan, term: int) -> tuple[dict[int, Routing], dict[str, int]]:
    """The routing with which everything begins anew, and when those were born that are left."""
    routings = {stage: routing.restored(record, term) for stage, record in plan.routings.items()}
    births = {
        executor: birth
        for executor, birth in plan.births.items()
        if executor_id(executor).index in routings[executor_id(executor).stage].executors
    }
    return routings, births
