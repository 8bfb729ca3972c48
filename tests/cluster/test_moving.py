"""Planned moves, step by step."""

from __future__ import annotations

import pytest
from tests.cluster.test_succession import Case, kinds

from penstock.cluster.decisions import Nothing
from penstock.cluster.plan import Move
from penstock.exchange.replica.assignment import Mode
from penstock.exchange.replica.messages import Caught


def move(case, to, executor="1.0", **changes):
    values = {"to": to, "generation": case.plan.generation, "asked": case.now, "deadline": case.now + 60, **changes}
    case.change(moves={**case.state.moves, executor: Move(**values)})


def third(case, executor="1.0"):
    """The node that has no replica of it."""
    return next(iter({"a", "b", "c"} - {s.node for n, s in case.plan.replicas.items() if n.startswith(executor)}))


def on(case, node, executor="1.0"):
    (name,) = (n for n, s in case.plan.replicas.items() if s.node == node and n.startswith(f"{executor}@"))
    return name


def caught(case, name, executor="1.0"):
    case.report(name, Caught(case.plan.records[executor].since, name, 99))


def test_a_move_to_a_third_node_step_by_step():
    case = Case("passive").protected()
    old, regular, target = case.primary(), case.standby(), third(case)
    move(case, target)
    case.write()
    new = on(case, target)
    assert case.plan.records["1.0"].standbys == {regular: Mode.PASSIVE, new: Mode.ACTIVE}
    assert case.plan.records["1.0"].protecting == {regular}
    assert case.decide() == Nothing()
    case.run()
    case.complete("1.0")
    case.write()
    assert case.plan.handovers == {"1.0": new}
    assert case.decide() == Nothing()
    caught(case, new)
    decision = case.write()
    record = case.plan.records["1.0"]
    assert record.primary == new
    assert record.standbys == {regular: Mode.PASSIVE}
    assert old not in case.plan.replicas
    assert case.plan.executors["1.0"].node == target
    assert case.plan.handovers == {}
    assert case.state.moves == {}
    assert kinds(decision)[0] == "executor.moved"
    assert case.plan.promotions == 0
    assert case.decide() == Nothing()


def test_a_move_to_where_the_standby_is_uses_that_one_and_then_makes_another():
    case = Case().protected()
    old, standby = case.primary(), case.standby()
    here, target = case.node(old), case.node(standby)
    move(case, target)
    case.write()
    assert case.plan.handovers == {"1.0": standby}
    caught(case, standby)
    case.write()
    assert case.primary() == standby
    assert here != target
    case.write()
    assert case.node(case.standby()) != target
    assert case.state.moves == {}


def test_an_early_or_foreign_word_of_having_caught_up_moves_nothing():
    case = Case().protected()
    standby = case.standby()
    caught(case, standby)
    assert case.decide() == Nothing()
    move(case, case.node(standby))
    case.write()
    case.change(run={**case.state.run})
    case.say(standby, reports=[Caught((1, 1), standby, 5)])
    assert case.decide() == Nothing()


def test_a_move_to_where_it_is_already_is_over():
    case = Case().protected()
    move(case, case.node(case.primary()))
    before = case.plan.records
    decision = case.write()
    assert case.plan.records == before
    assert case.state.moves == {}
    assert kinds(decision) == ["executor.moved"]


@pytest.mark.parametrize("how", ["node", "time"])
def test_a_move_that_cannot_be_is_given_up_and_the_primary_goes_on(how):
    case = Case().protected()
    old, regular, target = case.primary(), case.standby(), third(case)
    move(case, target)
    case.write()
    if how == "node":
        del case.live[target]
    else:
        case.now += 61
    decision = case.write()
    record = case.plan.records["1.0"]
    assert record.primary == old
    assert record.standbys == {regular: Mode.ACTIVE}
    assert record.protecting == {regular}
    assert case.state.moves == {}
    assert "move.failed" in kinds(decision)


def test_a_handover_that_is_not_done_in_time_takes_the_standby_away_so_that_the_primary_goes_on():
    case = Case().protected()
    old, standby = case.primary(), case.standby()
    move(case, case.node(standby))
    case.write()
    case.now += 61
    case.write()
    record = case.plan.records["1.0"]
    assert record.primary == old
    assert standby not in record.standbys
    assert case.plan.handovers == {}
    assert case.plan.at_once == case.plan.revision


def test_a_primary_that_dies_while_it_moves_is_replaced_and_the_move_goes_on():
    case = Case().protected()
    old, regular, target = case.primary(), case.standby(), third(case)
    move(case, target)
    case.write()
    case.run()
    new = on(case, target)
    case.say(old, state="lost")
    case.write()
    assert case.primary() == regular
    assert set(case.plan.records["1.0"].standbys) == {new}
    case.complete("1.0")
    case.write()
    if not case.plan.handovers:
        case.write()
    caught(case, new)
    case.write()
    assert case.primary() == new
    assert case.state.moves == {}


def test_a_target_that_dies_is_made_anew():
    case = Case().protected()
    regular, target = case.standby(), third(case)
    move(case, target)
    case.write()
    case.run()
    new = on(case, target)
    case.say(new, state="lost")
    case.write()
    again = on(case, target)
    assert again != new
    assert set(case.plan.records["1.0"].standbys) == {regular, again}


def test_a_move_for_another_generation_is_forgotten():
    case = Case().protected()
    move(case, third(case), generation=1)
    case.write()
    assert case.state.moves == {}
    assert len(case.plan.records["1.0"].standbys) == 1
