"""A model on paper that is being updated while it is online."""

from __future__ import annotations

import msgspec
from tests.cluster.test_succession import LIVE, Case

from penstock.cluster.checkpoint_record import CheckpointRecord
from penstock.cluster.decisions import Later, Sweep, WritePlan
from penstock.cluster.upgrading import SHADOW, TRIAL
from penstock.exchange.replica.messages import Caught

REVISION = 9
"""Of the catalogue, that brings version 2."""


class Update(Case):
    """A protected model that has a durable checkpoint, and of which the catalogue has another version."""

    def __init__(self, recovery="passive", live=LIVE, **changes):
        super().__init__(recovery, live, version="1", **changes)
        if len(live) > 1:
            self.protected()
        self.durable(5)

    def durable(self, number, of=0):
        record = CheckpointRecord(generation=self.plan.generation, number=number, of=of)
        self.change(checkpoint=number, durable=record)

    def asked(self, digest="d2", version="2", revision=REVISION, **changes):
        entry = msgspec.structs.replace(self.state.entry, digest=digest, version=version, revision=revision, **changes)
        self.change(entry=entry)
        return self

    @property
    def upgrade(self):
        assert self.plan.upgrade is not None
        return self.plan.upgrade

    def shadow(self, executor="1.0"):
        (name,) = self.plan.records[executor].foreign
        return name

    def shadows(self):
        return [name for record in self.plan.records.values() for name in sorted(record.foreign)]

    def new(self):
        """Executors that run version 2."""
        return sorted(
            e for e, record in self.plan.records.items() if self.plan.upgraded(self.plan.replicas[record.primary])
        )

    def shadowed(self):
        """All shadows compute, and have done so for long enough."""
        self.asked()
        self.write()
        self.run()
        self.write()
        later = self.decide()
        assert later == Later(self.now + SHADOW)
        self.now = later.at
        return self

    def ordered(self):
        self.shadowed()
        self.write()
        return self

    def caught(self, *executors):
        for executor in executors:
            record = self.plan.records[executor]
            self.report(self.shadow(executor), Caught(record.since, self.shadow(executor), 99))

    def handed(self, *executors):
        """The hand-over to these is done."""
        self.caught(*executors)
        return self.write()

    def standby_of(self, executor):
        """Its standby of the version that it has."""
        record = self.plan.records[executor]
        (name,) = record.standbys.keys() - record.foreign
        return name

    def settle_handovers(self):
        """Whatever is ordered is done, until all run the new version."""
        for _ in range(60):
            if self.new() == list(self.plan.records):
                return
            for executor, target in self.plan.handovers.items():
                self.report(target, Caught(self.plan.records[executor].since, target, 99))
            decision = self.decide()
            if isinstance(decision, Later):
                self.now = decision.at
            elif isinstance(decision, Sweep):
                self.change(run={n: r for n, r in self.state.run.items() if n not in decision.executors})
            else:
                self.write()
            self.run()
        raise AssertionError(f"only {self.new()} run the new version")

    def standbys(self):
        """The new primaries have standbys that protect them."""
        self.write()
        self.run()
        self.complete()
        self.write()

    def on_trial(self):
        """All run the new version."""
        self.ordered()
        self.handed("1.0", "1.1")
        self.standbys()
        self.handed("0.0", "0.1")
        while not self.upgrade.done:
            self.write()
        self.run()
        self.complete()
        if isinstance(self.decide(), WritePlan):
            self.write()
        return self

    def proved(self):
        self.on_trial()
        self.now = self.upgrade.done + TRIAL
        self.write()
        assert self.upgrade.proved
        return self

    def write(self):
        """Decide, and put the plan in force: every node has to take it for a later one."""
        before = self.state.plan
        decision = super().write()
        assert before is None or before.generation != self.plan.generation or before.latest < self.plan.latest
        return decision

    def fail(self, name, error="KeyError: 'x'"):
        self.say(name, state="failed", error=error, kind="StepError")
