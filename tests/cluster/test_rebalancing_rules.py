"""When the leader moves executors by itself, what it tells, and what it leaves alone; without Redis and processes."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from tests.cluster.scenes import model, reported, view

from penstock.clock import FakeClock
from penstock.cluster.plan import Move
from penstock.cluster.rebalancing import Rebalancing
from penstock.cluster.service import Conflict
from penstock.placement import registry
from penstock.settings import Balancing, ClusterSettings

WORDS = "default/words"
CROSSED = {"0.0": "a", "0.1": "b", "1.0": "b", "1.1": "a"}
FLOWS = {(WORDS, "0.0", "1.0"): 1e6, (WORDS, "0.1", "1.1"): 1e6}


class Events:
    """Remembers what was said."""

    def __init__(self):
        self.said = []

    def say(self, kind, text, *, model="", level="info", stream="log"):
        self.said.append((kind, text))

    def of(self, kind):
        return [text for said, text in self.said if said == kind]


class World:
    """A cluster on paper in which moves that are asked for happen at once, or are refused."""

    def __init__(self, homes=CROSSED, recovery="passive", rebalance=True, **settings):
        self.clock, self.events = FakeClock(), Events()
        self.homes, self.recovery = dict(homes), recovery
        self.asked, self.refusal, self.slow = [], "", False
        self.wanted = {}
        values = {"alpha": None, "interval": 30.0, "moves": 2, "sustained": 5.0, **settings}
        chosen = ClusterSettings(rebalance=rebalance, balancing=Balancing(**values))
        self.made = Rebalancing(chosen, self.clock, self.events, self.move)
        self.flows, self.cpu = FLOWS, {}
        self.leads = True

    async def move(self, model, executor, node):
        if self.refusal:
            raise Conflict(self.refusal)
        self.asked.append((executor, node))
        if self.slow:
            self.wanted[executor] = Move(to=node, generation=1, asked=0.0, deadline=9.0)
        else:
            self.homes[executor] = node

    def view(self):
        state = model(WORDS, self.homes, recovery=self.recovery)
        return view(msgspec.structs.replace(state, moves=dict(self.wanted)))

    def run(self, seconds):
        async def go():
            for _ in range(seconds):
                seen = self.view()
                self.made.observe(seen, reported(seen, self.flows, cpu=self.cpu), self.leads)
                await self.made.act()
                self.clock.advance(1.0)

        asyncio.run(go())

    def rebalance(self, **options):
        values = {"dry_run": False, "strategy": None, "model": None, **options}
        return asyncio.run(self.made.rebalance(self.view(), **values))


def together(homes):
    return homes["0.0"] == homes["1.0"] and homes["0.1"] == homes["1.1"]


def test_the_leader_improves_the_placement_by_itself_and_then_leaves_it():
    world = World()
    world.run(30)
    assert world.asked == []  # a new leader waits: it does not know when there was a change
    world.run(3)
    assert len(world.asked) == 2
    assert together(world.homes)
    (told,) = world.events.of("placement.changed")
    assert told.startswith("cut 100% -> 0%, 2 moves")
    assert "default/words:1." in told or "default/words:0." in told
    world.run(100)
    assert len(world.asked) == 2


@pytest.mark.parametrize("reason", ["switched off", "no leader", "recovery none"])
def test_nothing_moves_by_itself(reason):
    world = World(rebalance=reason != "switched off", recovery="none" if reason == "recovery none" else "passive")
    world.leads = reason != "no leader"
    world.run(70)
    assert world.asked == []
    assert world.events.of("placement.changed") == []


def test_few_executors_move_at_the_same_time():
    homes = {f"{stage}.{index}": "ab"[(stage + index) % 2] for stage in (0, 1) for index in range(4)}
    world = World(homes, moves=1)
    world.flows = {(WORDS, f"0.{index}", f"1.{index}"): 1e6 for index in range(4)}
    world.slow = True
    world.run(33)
    assert len(world.asked) == 1
    ((executor, node),) = world.asked
    world.homes[executor] = node
    world.wanted.clear()
    world.run(2)
    assert len(world.asked) == 2


def test_a_refused_move_is_told_and_the_rest_is_dropped():
    world = World()
    world.refusal = "the model is being updated"
    world.run(40)
    assert world.asked == []
    problems = world.events.of("placement.problem")
    assert len(problems) == 1
    assert "the model is being updated" in problems[0]
    world.refusal = ""
    world.run(30)  # the next look finds it again
    assert together(world.homes)


def test_an_overloaded_node_is_relieved_before_traffic_counts():
    world = World({"0.0": "a", "1.0": "a", "1.1": "a"})
    world.flows = {}
    world.cpu = {(WORDS, "0.0"): 0.3, (WORDS, "1.0"): 0.5, (WORDS, "1.1"): 0.1}
    world.run(33)
    assert world.asked == [("1.0", "b")]
    (told,) = world.events.of("node.bottleneck")
    assert "node a has too little of worker (group default): 0.90 of 0.80 cores" in told
    assert "it would help to move executor default/words:1.0 to node b" in told
    assert world.events.of("node.relieved") == ["node a has enough of worker again"]
    assert "node a has too much to do" in world.events.of("placement.changed")[0]


def test_when_nothing_fits_the_event_says_what_would_help():
    world = World({"0.0": "a", "1.0": "a", "1.1": "b"})
    world.flows = {}
    world.cpu = {(WORDS, "0.0"): 0.5, (WORDS, "1.0"): 0.5, (WORDS, "1.1"): 0.7}
    world.run(8)
    (told,) = world.events.of("node.bottleneck")
    assert "the limit is gamma of node b" in told
    assert "another node would help, or slower sources (default/words:0.0)" in told


def test_a_limit_that_cannot_be_kept_is_told_once_and_the_placement_stays():
    world = World(fill=1e-9)
    world.run(100)
    assert world.asked == []
    problems = world.events.of("placement.problem")
    assert len(problems) == 1
    assert "the running placement stays: no placement keeps the limit memory" in problems[0]


def test_a_strategy_that_raises_is_told_and_the_placement_stays(monkeypatch):
    def broken(problem):
        raise ZeroDivisionError("oops")

    monkeypatch.setitem(registry.STRATEGIES, "broken", broken)
    world = World(strategy="broken")
    world.run(100)
    assert world.asked == []
    assert len(world.events.of("placement.problem")) == 1
    assert "ZeroDivisionError: oops" in world.events.of("placement.problem")[0]


# ---- when somebody asks ---------------------------------------------------------------------------------------------


def test_somebody_who_asks_gets_the_moves_that_have_begun():
    world = World(rebalance=False)
    world.run(10)
    dry = world.rebalance(dry_run=True)
    assert (len(dry.moves), world.asked) == (2, [])
    view = world.rebalance()
    assert [move.obstacle for move in view.moves] == ["", ""]
    assert sorted(executor for executor, _ in world.asked) == sorted(move.executor for move in view.moves)
    assert "somebody asked for it" in world.events.of("placement.changed")[0]
    world.run(2)
    again = world.rebalance()
    assert (again.apply, again.reason) == (False, "the running placement stays: nothing would move")


def test_one_rebalance_at_a_time():
    world = World(rebalance=False, moves=1)
    world.slow = True
    world.run(10)
    world.rebalance()
    with pytest.raises(Conflict, match="being moved already"):
        world.rebalance()
    assert world.rebalance(dry_run=True).staying == {"it is being moved": 1}


def test_models_with_recovery_none_are_moved_in_thought_alone():
    world = World(recovery="none")
    world.run(10)
    with pytest.raises(Conflict, match=r"would lose its state.*cut 100% -> 0%"):
        world.rebalance()
    dry = world.rebalance(dry_run=True)
    assert len(dry.moves) == 2
    assert all("recovery none" in move.obstacle for move in dry.moves)
    assert world.asked == []
