"""The leader and the agents of a model with replicas in a small world: no processes, no Redis, any trouble at any time.

Workers are modelled by what the control plane relies on: a replica *has the state* if it began as primary, or if its
primary has said that it is complete while both were there. Whoever is promoted must have it.
"""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import pytest
from tests.cluster.test_reconcile import entry

from penstock.cluster import reconcile
from penstock.cluster.converge import converge
from penstock.cluster.decisions import DropPlan, GiveUp, Later, Nothing, Sweep, WritePlan
from penstock.cluster.hosting import (
    ConnectModel,
    Forget,
    HandOver,
    Here,
    Host,
    LoadModel,
    Phase,
    ReleaseReplicas,
    ReportConnected,
    StartModel,
    StopModel,
)
from penstock.cluster.plan import Lives, ModelState, Move, RunEntry, executor_of, status
from penstock.cluster.reconcile import decide
from penstock.exchange.replica.messages import Caught, Complete, Diverged


class World:
    """Some nodes and one model. `now` only moves when everybody waits."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        recovery = self.random.choice(["active", "passive"])
        count = self.random.randint(1, 3)
        self.state = ModelState(entry=entry(executors=count, recovery=recovery))
        self.live = {name: Lives(incarnation=1) for name in "abcd"[: self.random.randint(1, 4)]}
        self.hosts = {name: {} for name in self.live}
        self.attempted = {name: set() for name in self.live}
        self.records = {}
        """Worker -> the records that it has been told."""
        self.have_state, self.seated, self.silent = set(), set(), set()
        self.down = {}
        self.workers, self.now, self.term = 0, 0.0, 1
        self.gave_up = ""
        self.caught = set()
        self.moved = 0

    # ---- the leader -------------------------------------------------------------------------------------------------

    def change(self, **changes):
        self.state = msgspec.structs.replace(self.state, **changes)

    def lead(self, seen=None, term=None):
        """Decide on `seen`, which may be old, and write by the rules of the scripts."""
        seen, term = seen or self.state, term or self.term
        decision = decide(seen, self.live, term, self.now)
        if term != self.term:
            return False  # the scripts refuse it
        match decision:
            case WritePlan(plan=plan):
                if plan.revision <= self.state.entry.counter:
                    return False
                self.check(plan, decision)
                counted = msgspec.structs.replace(self.state.entry, counter=plan.revision)
                moves = {name: m for name, m in self.state.moves.items() if name not in decision.settled}
                self.change(plan=plan, entry=counted, moves=moves)
            case DropPlan():
                self.change(plan=None, connected={}, moves={})
            case Sweep(executors=names):
                self.change(run={n: r for n, r in self.state.run.items() if n not in names})
            case GiveUp(error=error):
                self.gave_up = error
                self.change(entry=msgspec.structs.replace(self.state.entry, error=error))
        return not isinstance(decision, Nothing | Later)

    def check(self, plan, decision):
        before = self.state.plan
        renewed = before is None or plan.restores > before.restores
        for executor, record in plan.records.items():
            everybody = [record.primary, *record.standbys]
            assert all(name in plan.replicas and executor_of(name) == executor for name in everybody)
            assert len({plan.replicas[name].node for name in everybody}) == len(everybody), "two replicas on a node"
            assert record.epoch[1] <= plan.revision
            if renewed:
                self.have_state.add(record.primary)
            else:
                old = before.records[executor]
                assert record.epoch >= old.epoch
                assert (record.epoch == old.epoch) == (record == old)
                if record.primary != old.primary:
                    handed = (old.since, record.primary) in self.caught
                    assert handed or not self.well(before, old.primary), "a primary that is well was replaced"
                    assert record.primary in self.have_state, f"{record.primary} was promoted without the state"
        if renewed and before is not None:
            assert min(r.since for r in plan.records.values()) > max(r.epoch for r in before.records.values())
        assert len(plan.replicas) == sum(1 + len(r.standbys) for r in plan.records.values())
        new = set(plan.replicas) - (set() if before is None else set(before.replicas))
        assert not new & self.seated, "a name was used twice"
        self.seated |= new
        self.moved += sum(told.kind == "executor.moved" for told in decision.told)

    def well(self, plan, name):
        """Whether the leader has reason to think that a replica is there."""
        seat, known = plan.replicas[name], self.state.run.get(name)
        lives = self.live.get(seat.node) == Lives(incarnation=seat.incarnation)
        return lives and (known is None or known.state not in ("lost", "failed", "silent"))

    # ---- the agents -------------------------------------------------------------------------------------------------

    def say(self, node, places, state, epoch):
        run = dict(self.state.run)
        for place in places:
            known = run.get(place)
            run[place] = RunEntry(
                epoch=epoch, node=node, incarnation=self.live[node].incarnation, state=state, endpoint="x",
                reports=known.reports if known is not None else [],
            )  # fmt: skip
        self.change(run=run)

    def agent(self, node):
        if node not in self.live:
            return False
        hosts = list(self.hosts[node].values())
        here = Here(node, self.live[node].incarnation, hosts, {}, {("g/m", False): ("g", "")}, self.attempted[node])
        before = self.state
        for action in converge(here, {"g/m": self.state}):
            self.do(node, action)
        self.machines(node)
        return self.state is not before or [*self.hosts[node].values()] != hosts

    def do(self, node, action):
        hosts = self.hosts[node]
        match action:
            case LoadModel():
                self.workers += 1
                made = Host(self.workers, "g/m", action.epoch, frozenset(action.executors), Phase.LOADED)
                for place in action.executors:
                    assert ("g/m", place, action.epoch) not in self.attempted[node], "loaded twice"
                    self.attempted[node].add(("g/m", place, action.epoch))
                hosts[made.worker] = made
                self.say(node, action.executors, "loaded", action.epoch)
            case StopModel(worker=worker):
                self.vacate(node, hosts.pop(worker))
            case ReleaseReplicas(worker=worker, replicas=names):
                host = hosts[worker]
                hosts[worker] = replace(host, executors=host.executors - set(names))
                self.vacate(node, replace(host, executors=frozenset(names)))
            case ConnectModel(worker=worker, revision=revision, complete=complete):
                knows = revision if complete else hosts[worker].knows
                hosts[worker] = replace(hosts[worker], connected=revision, knows=knows)
                self.records[worker] = self.state.plan.records
            case ReportConnected(revision=revision):
                self.change(connected={**self.state.connected, node: revision})
            case StartModel(worker=worker):
                hosts[worker] = replace(hosts[worker], phase=Phase.STARTED)
                self.say(node, hosts[worker].executors, "running", hosts[worker].epoch)
            case HandOver(executor=executor, standby=standby):
                self.handed(executor, standby)
            case Forget(executors=names):
                self.change(run={n: r for n, r in self.state.run.items() if n not in names or r.node != node})

    def vacate(self, node, host):
        plan = self.state.plan
        wanted = {p for p in host.executors if plan and p in plan.seats and plan.seats[p].epoch == host.epoch}
        self.say(node, wanted, "lost", host.epoch)
        self.change(run={n: r for n, r in self.state.run.items() if n not in host.executors - wanted})

    # ---- the replicas' machines -------------------------------------------------------------------------------------

    def up(self, place):
        """The host in which a replica runs."""
        found = [h for hosts in self.hosts.values() for h in hosts.values() if place in h.executors]
        return next((h for h in found if h.phase is Phase.STARTED and h.worker not in self.silent), None)

    def report(self, place, report):
        if (known := self.state.run.get(place)) is not None and report not in known.reports:
            kept = [r for r in known.reports if type(r) is not type(report)]
            changed = msgspec.structs.replace(known, reports=[*kept, report])
            self.change(run={**self.state.run, place: changed})

    def machines(self, node):
        """Primaries here bring their standbys up to date."""
        for host in list(self.hosts.get(node, {}).values()):
            for executor, record in self.records.get(host.worker, {}).items():
                if record.primary not in host.executors or self.up(record.primary) is None:
                    continue
                for standby in record.standbys:
                    there = self.up(standby)
                    known = self.records.get(there.worker, {}).get(executor) if there is not None else None
                    if known is None or known.since != record.since or standby in record.protecting:
                        continue
                    assert record.primary in self.have_state
                    self.have_state.add(standby)
                    self.report(record.primary, Complete(record.epoch, standby))

    def handed(self, executor, standby):
        record = self.state.plan.records[executor]
        if self.up(standby) is not None and standby in self.have_state and self.random.random() < 0.7:
            self.caught.add((record.since, standby))
            self.report(standby, Caught(record.since, standby, 1))

    # ---- trouble ----------------------------------------------------------------------------------------------------

    def trouble(self):
        node = self.random.choice(sorted(self.hosts))
        kinds = ["worker", "worker", "node", "gone", "silent", "diverged", "leader", "move", "move"]
        match self.random.choice(kinds):
            case "worker" if self.hosts[node] and node in self.live:
                worker = self.random.choice(sorted(self.hosts[node]))
                self.vacate(node, self.hosts[node].pop(worker))
                self.silent.discard(worker)
            case "node" if node in self.live:
                self.hosts[node], self.attempted[node] = {}, set()
                self.live[node] = Lives(incarnation=self.live[node].incarnation + 1)
            case "gone" if node in self.live and len(self.live) > 1:
                self.down[node] = self.live.pop(node).incarnation
                self.hosts[node], self.attempted[node] = {}, set()
            case "silent" if node in self.live:
                for worker, host in self.hosts[node].items():
                    if host.phase is Phase.STARTED:
                        self.silent.add(worker)
                        self.say(node, host.executors, "silent", host.epoch)
            case "diverged" if self.state.plan is not None:
                record = self.random.choice(sorted(self.state.plan.records.items()))[1]
                for standby in record.standbys:
                    if self.up(standby) is not None:
                        self.have_state.discard(standby)
                        self.report(standby, Diverged(record.epoch, standby, 1))
            case "leader":
                self.term += 1
            case "move" if self.state.plan is not None:
                executor = self.random.choice(sorted(self.state.plan.records))
                move = Move(to=node, generation=self.state.plan.generation, asked=self.now, deadline=self.now + 20)
                self.change(moves={**self.state.moves, executor: move})

    def calm(self):
        """Whoever was gone is back, whoever was silent speaks, or is dead."""
        for node, incarnation in self.down.items():
            self.live[node] = Lives(incarnation=incarnation + 1)
        self.down = {}
        for node, hosts in self.hosts.items():
            for worker, host in list(hosts.items()):
                if worker in self.silent:
                    self.silent.discard(worker)
                    self.say(node, host.executors, "running", host.epoch)
                    self.vacate(node, hosts.pop(worker)) if self.random.random() < 0.5 else None

    def settle(self):
        quiet = 0
        for _ in range(600):
            self.now += 1.0
            nodes = self.random.sample(sorted(self.live), len(self.live))
            acted = [self.lead()] + [self.agent(node) for node in nodes]
            quiet = 0 if any(acted) else quiet + 1
            if quiet > 70:  # longer than any pause or deadline
                return
        raise AssertionError(f"it does not settle: {self.state}")


@pytest.mark.parametrize("seed", range(150))
def test_whatever_happens_only_who_has_the_state_takes_over_and_all_is_protected_in_the_end(seed, monkeypatch):
    monkeypatch.setattr(reconcile, "FAILURES_ALLOWED", 1000)
    world = World(seed)
    if world.random.random() < 0.7:
        world.change(checkpoint=world.random.randint(1, 9))
    world.settle()
    for _ in range(8):
        old, term = world.state, world.term
        for _ in range(world.random.randint(0, 12)):
            if world.random.random() < 0.4:
                world.lead()
            elif world.random.random() < 0.1:
                world.lead(old, term)  # a leader that has not noticed
            else:
                world.agent(world.random.choice(sorted(world.hosts)))
        world.trouble()
    world.calm()
    world.settle()
    if world.gave_up:
        assert world.state.checkpoint is None
        assert "no durable checkpoint" in world.gave_up
        assert not any(world.hosts.values())
        return
    plan = world.state.plan
    if len(world.live) > 1:
        assert status(world.state) == "online", world.state
        assert all(len(record.standbys) == 1 for record in plan.records.values())
    else:
        assert status(world.state) == "degraded"
    running = sorted(place for hosts in world.hosts.values() for h in hosts.values() for place in h.executors)
    assert running == sorted(plan.replicas)
    assert sorted(world.state.run) == running
    assert world.state.moves == {}
    assert plan.handovers == {}
    world.change(entry=msgspec.structs.replace(world.state.entry, desired="offline"))
    world.settle()
    assert status(world.state) == "offline"
    assert not any(world.hosts.values())
