"""A stage under Hypothesis: it chooses what happens next, and looks for the shortest failure."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.exchange.split import routing
from penstock.exchange.split.routing import Phase

from .simulator import Simulation
from .world import MemberNode, ProducerNode


class Splitting(RuleBasedStateMachine):
    """Two producers and a stage, over a network that Hypothesis controls."""

    @initialize(seed=st.integers(0, 50), buffer=st.sampled_from((2, 1000)))
    def begin(self, seed: int, buffer: int) -> None:
        run = Simulation(seed)
        run.loss = run.twice = run.doubt = run.crash_chance = run.pause_chance = 0.0
        run.protected, run.buffer, run.straggling, run.window = True, buffer, False, 1
        run._build()
        for node in run.producers:
            node.pace = 1.0
        self.run = run

    def _node(self, place: int):
        alive = [node for node in self.run.nodes.values() if not node.gone]
        return alive[place % len(alive)]

    @precondition(lambda self: self.run.store.shift is None)
    @rule()
    def wanted(self) -> None:
        if not all(node.ended for node in self.run.producers):
            self.run.shifts = 1
            self.run.begin()

    @rule(place=st.integers(0, 9), times=st.integers(1, 5))
    def work(self, place: int, times: int) -> None:
        node = self._node(place)
        for _ in range(times):
            node.work(self.run.rng)

    @rule(place=st.integers(0, 9), all_=st.booleans())
    def turn(self, place: int, all_: bool) -> None:
        node = self._node(place)
        if all_:
            node.acked = node.executed
        self.run.transmit(node)
        self.run.report(node.turn())

    @precondition(lambda self: self.run.network)
    @rule(data=st.data(), fate=st.sampled_from(("arrive", "arrive", "arrive", "twice", "lost")))
    def network(self, data: st.DataObject, fate: str) -> None:
        network = self.run.network
        place = data.draw(st.integers(0, min(3, len(network) - 1)))
        item = network.pop(place)
        if fate != "lost":
            network.insert(0, item)
            self.run.deliver()
        if fate == "twice":
            network.append(item)

    @rule(count=st.integers(1, 40))
    def all_arrives(self, count: int) -> None:
        for _ in range(count):
            self.run.deliver()

    @rule(times=st.integers(1, 4), but=st.integers(0, 9))
    def everybody_acts(self, times: int, but: int) -> None:
        for place, node in enumerate([node for node in self.run.nodes.values() if not node.gone]):
            if place != but:
                for _ in range(times):
                    node.work(self.run.rng)
                node.acked = node.executed
                self.run.transmit(node)
                self.run.report(node.turn())
        self.run.lead()
        for _ in range(len(self.run.network)):
            self.run.deliver()

    @rule(place=st.integers(0, 9))
    def silence(self, place: int) -> None:
        self.run.silence(self._node(place))

    @rule(place=st.integers(0, 9))
    def dies(self, place: int) -> None:
        self.run.crash(self._node(place))

    @rule()
    def leader(self) -> None:
        self.run.lead()

    @rule()
    def another_leader(self) -> None:
        self.run._depose()

    @rule()
    def given_up(self) -> None:
        self.run.leader.on_record(self.run.store)
        self.run.write(self.run.leader, self.run.leader.give_up())

    @invariant()
    def a_key_lives_on_one_executor(self) -> None:
        if hasattr(self, "run"):
            seen: set[int] = set()
            for node in self.run.nodes.values():
                if isinstance(node, MemberNode) and not node.gone:
                    assert not seen & node.live["keys"].keys()
                    seen |= node.live["keys"].keys()

    @invariant()
    def what_is_held_back_is_bounded(self) -> None:
        if hasattr(self, "run"):
            for node in self.run.producers:
                assert node.machine.bytes <= self.run.buffer + 2 + self.run.edges * 16

    @invariant()
    def the_commit_comes_after_the_switch(self) -> None:
        """Whatever fails over: who has committed routing has a giver that cut, and producers that switched."""
        if not hasattr(self, "run"):
            return
        record = self.run.store
        for node in self.run.nodes.values():
            if isinstance(node, ProducerNode) and record.phase is Phase.COMMITTED and record.shift is not None:
                machine = node.machine
                switched = machine.shift is not None or machine.progress.settled == record.shift.id
                assert switched or node.ended
        if record.undecided and record.shift is not None:
            assert routing.finished(record, record.shift.id, record.shift.everybody) is None

    def teardown(self) -> None:
        if hasattr(self, "run"):
            self.run.drain()
            self.run.check()


Splitting.TestCase.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)
TestSplitting = Splitting.TestCase
