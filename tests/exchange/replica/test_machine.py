"""A primary and a standby under Hypothesis: it chooses what happens next, and looks for the shortest failure."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.exchange.replica.assignment import Mode
from penstock.exchange.replica.core import Feed, ReplicaSettings
from penstock.exchange.replica.order_log import EVENT
from penstock.exchange.replica.standby import Standby

from .simulator import Simulation
from .world import Host


class Replicated(RuleBasedStateMachine):
    """One executor with two sources and two sinks, over a network that Hypothesis controls."""

    @initialize(mode=st.sampled_from(Mode), feed=st.sampled_from(Feed), backlog=st.sampled_from((60, 10_000)))
    def begin(self, mode: Mode, feed: Feed, backlog: int) -> None:
        self.run = Simulation(7, "one")
        self.run.loss = self.run.twice = 0.0
        self.run.deaf = 0.0
        self.run.moves = 0
        self.run.spoiling = False
        group = self.run.groups["g0"]
        group.settings = ReplicaSettings(feed, digest_every=2, backlog_bytes=backlog, handover_lag=1)
        group.modes = [mode]
        group.hosts["g0.0"] = Host("g0.0", group.record, group.inputs, group.outputs, group.settings, 1, self.run.rng)
        self.group = group
        self.promotions = 0

    def _host(self, primary: bool) -> Host | None:
        standbys = list(self.group.record.standbys)
        if not primary and not standbys:
            return None
        host = self.group.hosts[self.group.record.primary if primary else standbys[0]]
        return host if host.alive else None

    @rule(channel=st.sampled_from((0, 1)))
    def produce(self, channel: int) -> None:
        self.run._from_source(channel, self.run.sources[channel].step())

    @precondition(lambda self: self.run.network)
    @rule(data=st.data(), fate=st.sampled_from(("arrive", "arrive", "arrive", "twice", "lost")))
    def network(self, data: st.DataObject, fate: str) -> None:
        network = self.run.network
        place = data.draw(st.integers(0, min(3, len(network) - 1)))
        item = network.pop(place)
        if fate != "lost":
            network.insert(0, item)
            self.run.window = 1
            self.run.deliver()
        if fate == "twice":
            network.append(item)

    @rule(primary=st.booleans(), what=st.sampled_from(("work", "work", "turn", "turn", "silence", "event", "prepare")))
    def act(self, primary: bool, what: str) -> None:
        host = self._host(primary)
        if host is None:
            return
        if what == "work":
            self.run.post(host.name, host.work())
        elif what == "event":
            self.run.post(host.name, host.event())
        elif what == "prepare":
            if host.preparing:
                self.run.post(host.name, host.prepare())
        else:
            self.run.post(host.name, host.obey(getattr(host.machine, what)()))

    @rule()
    def checkpoint(self) -> None:
        host = self._host(primary=True)
        if host is not None and host.machine.checkpoint_due():
            self.run.post(host.name, host.checkpoint())

    @rule()
    def leader(self) -> None:
        self.run.lead(self.group)

    @precondition(lambda self: self.group.record.protecting and self.promotions < 2)
    @rule()
    def primary_dies(self) -> None:
        self.promotions += 1
        host = self._host(primary=True)
        if host is not None:
            host.alive = False

    @precondition(lambda self: self.group.record.standbys and len(self.group.hosts) < 6)
    @rule()
    def standby_dies(self) -> None:
        host = self._host(primary=False)
        primary = self._host(primary=True)
        if host is not None and primary is not None:
            host.alive = False

    @precondition(lambda self: self.group.record.standbys and not self.group.handing)
    @rule()
    def hand_over(self) -> None:
        self.group.handing = next(iter(self.group.record.standbys))

    @invariant()
    def what_is_acknowledged_is_held(self) -> None:
        if not hasattr(self, "group"):
            return
        for host in self.group.hosts.values():
            standby, core = host.machine.role, host.machine.core
            if not isinstance(standby, Standby) or not standby.synced:
                continue
            for position in range(core.executed + 1, standby.acked + 1):
                step = core.log[position]
                assert step.channel == EVENT or core.inputs[step.channel][step.seq]

    @invariant()
    def what_has_left_can_be_made_again(self) -> None:
        """The output rule, seen from outside: with a standby that protects, the sinks have nothing beyond its log."""
        if not hasattr(self, "group"):
            return
        now = self.group.record
        for name in now.protecting:
            standby = self.group.hosts[name].machine
            if not isinstance(standby.role, Standby) or not standby.role.synced:
                continue
            if self.group.hosts[now.primary].machine.core.since != standby.core.since:
                continue
            primary = self.group.hosts[now.primary].machine.core
            for channel in self.group.outputs:
                for output in primary.outputs[channel].kept():
                    if output.seq < len(self.run.sinks[channel].got):
                        assert output.position <= standby.role.acked

    def teardown(self) -> None:
        if hasattr(self, "run"):
            self.run.drain()
            self.run.check()


Replicated.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestReplicated = Replicated.TestCase
