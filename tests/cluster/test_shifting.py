"""What the leader does about splits, on paper."""

from __future__ import annotations

import msgspec
import pytest
from tests.cluster.scenes import model, topology

from penstock.cluster import shifting
from penstock.cluster.plan import Lives, ShiftWish
from penstock.cluster.reconcile import decide
from penstock.cluster.splitter import policy_of
from penstock.errors import UsageError
from penstock.exchange.split.messages import Prepared, Settled, Staged
from penstock.exchange.split.routing import Phase
from penstock.flow.graph import EdgeShape
from penstock.settings import Balancing
from penstock.worker.messages import Epoch

LIVE = {name: Lives(incarnation=1) for name in "abc"}
HOMES = {"0.0": "a", "1.0": "b", "2.0": "a"}
STANDBYS = {"0.0": "b", "1.0": "c", "2.0": "b"}
HALF = tuple(range(0, 256, 2))


def scene(**wish):
    state = model("g/m", HOMES, stages=3, standbys=STANDBYS)
    nodes = dict.fromkeys(state.plan.nodes(), 1)
    state = protected(msgspec.structs.replace(state, connected=nodes))
    if not wish:
        return state
    return msgspec.structs.replace(state, shifts={1: ShiftWish(**{**WISH, **wish})})


WISH = {"generation": 1, "asked": 90.0, "deadline": 120.0, "giver": 0, "groups": HALF, "reason": "full"}


def protected(state):
    records = {
        name: msgspec.structs.replace(record, protecting=frozenset(record.standbys))
        for name, record in state.plan.records.items()
    }
    return msgspec.structs.replace(state, plan=msgspec.structs.replace(state.plan, records=records))


def after(state, now=100.0, live=LIVE):
    """What the leader writes, and the state with it, in which everybody does as the plan says."""
    decision = decide(state, live, 1, now)
    plan = decision.plan
    run = {
        seat: state.run.get(seat)
        or msgspec.structs.replace(next(iter(state.run.values())), epoch=place.epoch, node=place.node, endpoint=seat)
        for seat, place in plan.replicas.items()
    }
    wishes = {stage: wish for stage, wish in state.shifts.items() if str(stage) not in decision.settled}
    nodes = dict.fromkeys(plan.nodes(), plan.revision)
    return decision, protected(msgspec.structs.replace(state, plan=plan, run=run, shifts=wishes, connected=nodes))


def saying(state, *reports):
    """Each said by its party's primary."""
    run = dict(state.run)
    for report in reports:
        seat = state.plan.seat(report.party)
        run[seat] = msgspec.structs.replace(run[seat], reports=[*run[seat].reports, report])
    return msgspec.structs.replace(state, run=run)


def kinds(decision):
    return [told.kind for told in decision.told]


def begun():
    return after(scene(giver=0))


def test_a_split_goes_its_way():
    decision, state = begun()
    assert "executor.splitting" in kinds(decision)
    plan = state.plan
    shift = plan.routings[1].shift
    assert (plan.routings[1].phase, shift.newcomer, shift.parties) == (Phase.PREPARING, "1.1", ("0.0", "1.0", "2.0"))
    assert plan.births == {"1.1": shift.id[1]}
    assert len(plan.records["1.1"].standbys) == 1
    assert plan.members() == {"0.0": 0, "1.0": 0, "2.0": 0, "1.1": shift.id[1]}
    assert plan.unborn() == {"1.1"}
    assert plan.owner(1, 0) == 0

    state = saying(state, *(Prepared(shift.id, party) for party in shift.everybody))
    _, state = after(state)
    assert state.plan.routings[1].phase is Phase.SWITCHING
    decision, state = after(saying(state, Staged(shift.id, "1.1")))
    assert kinds(decision) == ["executor.split"]
    assert state.plan.routings[1].phase is Phase.COMMITTED
    assert (state.plan.owner(1, 0), state.plan.owner(1, 1), state.plan.unborn()) == (1, 0, frozenset())
    _, state = after(saying(state, *(Settled(shift.id, party) for party in shift.everybody)))
    assert state.plan.routings[1].shift is None
    assert state.plan.indexes(1) == [0, 1]


def test_old_reports_mean_nothing_to_the_next_shift():
    _, state = begun()
    first = state.plan.routings[1].shift
    state = saying(state, *(Prepared(first.id, party) for party in first.everybody))
    _, state = after(after(state, now=100.0)[1], now=100.0 + shifting.DEADLINE + 1)  # nobody stages it
    assert state.plan.routings[1].phase is Phase.ABANDONED
    _, state = after(saying(state, *(Settled(first.id, party) for party in first.parties)))
    assert state.plan.routings[1].shift is None
    assert "1.1" not in state.plan.records
    wish = ShiftWish(**{**WISH, "deadline": 1000.0})
    _, state = after(msgspec.structs.replace(state, shifts={2: msgspec.structs.replace(wish, giver=0)}), now=300.0)
    second = state.plan.routings[2].shift
    assert second.id > first.id
    assert state.plan.routings[2].phase is Phase.PREPARING


def test_a_newcomer_that_is_lost_costs_nothing():
    _, state = begun()
    seats = [name for name in state.plan.replicas if name.startswith("1.1@")]
    run = {
        name: msgspec.structs.replace(entry, state="lost") if name in seats else entry
        for name, entry in state.run.items()
    }
    records = {**state.plan.records}
    records["1.1"] = msgspec.structs.replace(records["1.1"], protecting=frozenset())
    plan = msgspec.structs.replace(state.plan, records=records)
    decision, state = after(msgspec.structs.replace(state, run=run, plan=plan))
    assert "split.failed" in kinds(decision)
    assert state.plan.routings[1].phase is Phase.ABANDONED
    assert state.plan.restores == 0
    assert set(state.plan.executors) == set(HOMES)


def test_after_the_loss_of_everything_the_table_stays():
    _, state = begun()
    shift = state.plan.routings[1].shift
    _, state = after(saying(state, *(Prepared(shift.id, party) for party in shift.everybody)))
    _, state = after(saying(state, Staged(shift.id, "1.1")))
    run = {
        name: msgspec.structs.replace(entry, state="lost") if name.startswith("1.0@") else entry
        for name, entry in state.run.items()
    }
    decision, state = after(msgspec.structs.replace(state, run=run, checkpoint=4))
    assert "model.restored" in kinds(decision)
    assert (state.plan.restore, state.plan.routings[1].shift, state.plan.indexes(1)) == (4, None, [0, 1])
    assert state.plan.owner(1, 0) == 1


def test_a_wish_that_makes_no_sense_is_refused():
    decision, state = after(scene(giver=7))
    assert kinds(decision) == ["split.failed"]
    assert state.plan.routings == {}
    decision, _ = after(scene(deadline=99.0))
    assert "could not begin in time" in decision.told[0].text


def test_why_a_stage_cannot_be_split():
    shape = topology(3)
    assert "no keys" in shifting.obstacle(shape, 0)
    assert shifting.obstacle(shape, 1) == ""
    piped = msgspec.structs.replace(shape, edges=(shape.edges[0], EdgeShape(1, 1, "s1", 0, 2, "s2", 0, "pipe")))
    assert "straight from step s1 to step s2" in shifting.obstacle(piped, 1)


def test_settings_that_make_no_sense_are_named():
    with pytest.raises(UsageError, match=r"full=1\.5") as told:
        policy_of(Balancing(split_full=1.5))
    assert "split_full" in str(told.value)
    assert policy_of(Balancing(), least=20).most == 20


def test_another_term_goes_on():
    _, state = begun()
    shift = state.plan.routings[1].shift
    state = saying(state, *(Prepared(shift.id, party) for party in shift.everybody))
    decision = decide(state, LIVE, 2, 100.0)
    assert decision.plan.routings[1].phase is Phase.SWITCHING
    assert decision.plan.latest >= Epoch(2, 1) or decision.plan.routings[1].epoch[0] == 2
