"""A plan with replicas while the leader works on it: every change of a record goes with the change of its places.

The records move only by the functions of `penstock.exchange.replica.assignment`; a change that these refuse changes
nothing here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import msgspec

from penstock.cluster.decisions import Elsewhere, Told
from penstock.cluster.plan import Assigned, FailedUpgrade, Lives, ModelEntry, Plan, Upgrade, executor_of
from penstock.exchange.replica import assignment
from penstock.exchange.replica.assignment import Assignment, Mode
from penstock.exchange.split.routing import Routing
from penstock.worker.messages import Epoch

REMEMBERED = 60.0
"""Seconds for which a lost standby, or a silent primary, counts against the next decision."""


@dataclass
class Draft:
    """The plan as it is to become. `load`: node -> what other models have there."""

    plan: Plan
    term: int
    now: float
    live: Mapping[str, Lives]
    elsewhere: Elsewhere = field(default_factory=dict)
    told: list[Told] = field(default_factory=list)
    settled: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        plan = self.plan
        self.records = dict(plan.records)
        self.replicas = dict(plan.replicas)
        self.handovers = dict(plan.handovers)
        self.setbacks = {
            executor: recent
            for executor, lost in plan.setbacks.items()
            if (recent := [(at, node) for at, node in lost if at > self.now - REMEMBERED])
        }
        self.silences = [at for at in plan.silences if at > self.now - REMEMBERED]
        self.promotions = plan.promotions
        self.upgrade = plan.upgrade
        self.failed_upgrade = plan.failed_upgrade
        self.routings, self.births, self.shift_since = dict(plan.routings), dict(plan.births), plan.shift_since
        self.urgent = False
        """Primaries have to hear of it at once."""
        self._changed = False

    @property
    def changed(self) -> bool:
        """Whether there is something to write."""
        return self._changed or bool(self.settled)

    # ---- what there is ----------------------------------------------------------------------------------------------

    def node(self, replica: str) -> str:
        """Where it is."""
        return self.replicas[replica].node

    def standby_on(self, executor: str, node: str) -> str:
        """The standby of an executor on a node, of the version that it has; empty when there is none."""
        own = self.records[executor].standbys.keys() - self.records[executor].foreign
        return next((name for name in sorted(own) if self.node(name) == node), "")

    def roomiest(self, executor: str) -> str:
        """The node for another replica of an executor: none that has one already, rather not one where standbys of it
        were lost lately, and then the one with the least to do. Empty when there is none."""
        taken = {seat.node for name, seat in self.replicas.items() if executor_of(name) == executor}
        lost = Counter(node for _, node in self.setbacks.get(executor, ()))
        load = Counter(self.elsewhere.values())
        load.update(seat.node for seat in self.replicas.values())
        free = [node for node in self.live if node not in taken]
        return min(free, key=lambda node: (lost[node], load[node], node), default="")

    # ---- changes ----------------------------------------------------------------------------------------------------

    def say(self, kind: str, text: str, level: str = "info") -> None:
        """An entry for the event log."""
        self.told.append(Told(kind, text, level))

    def touch(self) -> None:
        """Something has changed that no other method has changed."""
        self._changed = True

    def is_new(self, replica: str) -> bool:
        """Whether a replica is of the version that is taking over."""
        return self.upgrade is not None and self.replicas[replica].of == self.upgrade.revision

    def begin_upgrade(self, entry: ModelEntry) -> Upgrade:
        """The catalogue has another version."""
        self.upgrade = Upgrade(
            revision=entry.revision, digest=entry.digest, config=entry.config, version=entry.version, begun=self.now
        )
        self._changed = True
        return self.upgrade

    def end_upgrade(self, failed: FailedUpgrade) -> None:
        """It could not take over."""
        self.upgrade, self.failed_upgrade = None, failed
        self._changed = True

    def seat(self, executor: str, node: str, of: int | None = None) -> str:
        """A place for a new replica, of the same version as the primary unless `of` names an update."""
        epoch = Epoch(self.term, self.plan.revision + 1)
        name = f"{executor}@{node}/{epoch.term}.{epoch.counter}"
        before = self.plan.executors.get(executor)
        restarts = 0 if before is None else before.restarts
        if of is not None:
            name += f"/{of}"  # another version: it may be on the node of the primary
        elif executor in self.records:
            of = self.replicas[self.records[executor].primary].of
        self.replicas[name] = Assigned(
            node=node, incarnation=self.live[node].incarnation, epoch=epoch, restarts=restarts, of=of or 0
        )
        return name

    def add_standby(self, executor: str, node: str, mode: Mode, of: int | None = None) -> str:
        """A new standby on `node`; with `of`, a shadow that runs the version of that update."""
        name, record = self.seat(executor, node, of), self.records[executor]
        added = assignment.with_standby(record, name, mode, foreign=of is not None, term=self.term)
        self._moved(executor, added)
        return name

    def drop_standby(self, executor: str, name: str) -> None:
        """It is not wanted any more; its primary has to hear of it at once."""
        self._moved(executor, assignment.without_standby(self.records[executor], name, self.term))
        self.replicas.pop(name, None)
        if self.handovers.get(executor) == name:
            del self.handovers[executor]
        self.urgent = True

    def lose_standby(self, executor: str, name: str) -> None:
        """As `drop_standby`, because it is gone. If its node is still there, the next one has to wait a little."""
        seat, shadow = self.replicas[name], name in self.records[executor].foreign
        if lives(seat.node, seat.incarnation, self.live) and not shadow:
            self.setbacks.setdefault(executor, []).append((self.now, seat.node))
        self.drop_standby(executor, name)

    def lost_shadow(self, name: str, why: str) -> None:
        """A shadow is about to be lost; those that go at one moment count once. Its node's loss says nothing of it."""
        seat, upgrade = self.replicas[name], self.upgrade
        if upgrade is None or not lives(seat.node, seat.incarnation, self.live):
            return
        losses = upgrade.losses if upgrade.losses[-1:] == [self.now] else [*upgrade.losses, self.now]
        self.upgrade = msgspec.structs.replace(upgrade, losses=losses, trouble=why)

    def protect(self, executor: str, name: str, reported: tuple[int, int]) -> bool:
        """Its primary says that it is complete."""
        return self._moved(executor, assignment.protected(self.records[executor], name, reported, self.term))

    def unprotect(self, executor: str, name: str) -> bool:
        """It has diverged. Until its primary knows, it is waited for."""
        self.urgent |= (done := self._moved(executor, assignment.unprotected(self.records[executor], name, self.term)))
        return done

    def promote(self, executor: str, name: str) -> bool:
        """The primary is gone, and its place with it."""
        record = self.records[executor]
        if not self._moved(executor, assignment.promoted(record, name, self.term)):
            return False
        self.promotions += 1
        self._appointed(executor, record)
        return True

    def hand_over(self, executor: str, name: str) -> bool:
        """The planned promotion that everything was prepared for."""
        record = self.records[executor]
        if not self._moved(executor, assignment.handed_over(record, name, self.term)):
            return False
        self._appointed(executor, record)
        return True

    def order_handover(self, executor: str, name: str) -> None:
        """The primary is to hand over to `name`."""
        self.handovers[executor] = name
        self._changed = True

    def add_executor(self, executor: str, record: Assignment, birth: int) -> None:
        """Another executor of a stage; its primary has a place already."""
        self.records[executor], self.births[executor] = record, birth
        self._changed = True

    def remove_executor(self, executor: str) -> None:
        """An executor that owns nothing goes, with all its replicas."""
        record = self.records.pop(executor)
        for name in (record.primary, *record.standbys):
            self.replicas.pop(name, None)
        self.births.pop(executor, None)
        self.handovers.pop(executor, None)
        self._changed = self.urgent = True

    def route(self, stage: int, record: Routing) -> None:
        """Who owns which key group of a stage, and which go elsewhere."""
        self.routings[stage] = record
        self._changed = self.urgent = True

    def settle(self, executor: str) -> None:
        """The move of an executor is over, one way or the other."""
        self.settled.append(executor)

    def _appointed(self, executor: str, before: Assignment) -> None:
        kept = {self.records[executor].primary, *self.records[executor].standbys}
        for gone in {before.primary, *before.standbys} - kept:
            self.replicas.pop(gone, None)
        self.handovers.pop(executor, None)
        self.urgent = True

    def _moved(self, executor: str, record: Assignment | None) -> bool:
        if record is None:
            return False
        self.records[executor] = record
        self._changed = True
        return True

    # ---- the result -------------------------------------------------------------------------------------------------

    def finished(self) -> Plan:
        """The plan to write. No counter in it is beyond its revision, so whatever comes later is later everywhere."""
        revision = max(self.plan.revision + 1, *(record.epoch[1] for record in self.records.values()))
        return msgspec.structs.replace(
            self.plan,
            revision=revision,
            executors={executor: self.replicas[record.primary] for executor, record in self.records.items()},
            records=self.records,
            replicas=self.replicas,
            handovers=self.handovers,
            setbacks=self.setbacks,
            silences=self.silences,
            routings=self.routings,
            births=self.births,
            shift_since=self.shift_since,
            promotions=self.promotions,
            upgrade=self.upgrade,
            failed_upgrade=self.failed_upgrade,
            at_once=revision if self.urgent else self.plan.at_once,
        )


def lives(node: str, incarnation: int, live: Mapping[str, Lives]) -> bool:
    """Whether this incarnation of the node is a member."""
    return node in live and live[node].incarnation == incarnation


def seated(
    plan: Plan, recovery: str, live: Mapping[str, Lives], term: int, now: float, elsewhere: Elsewhere
) -> tuple[Plan, tuple[str, ...]]:
    """`plan`, whose executors are placed, with replicas: a primary where each executor is, a standby on another node.
    Also the executors for which there is no other node. All that was before is forgotten: records begin anew, later
    than whatever there was."""
    blank = msgspec.structs.replace(
        plan, revision=plan.revision - 1, recovery=recovery, records={}, replicas={}, handovers={}, setbacks={}
    )
    draft = Draft(blank, term, now, live, elsewhere)
    for executor in plan.executors:
        primary = draft.seat(executor, plan.executors[executor].node)
        draft.records[executor] = assignment.first(primary, (term, plan.revision))
    alone = [executor for executor in plan.executors if not add_standby(draft, executor)]
    return draft.finished(), tuple(alone)


def add_standby(draft: Draft, executor: str) -> str:
    """A standby as the model's class wants it, on the node with the most room; empty when there is no node for it."""
    node = draft.roomiest(executor)
    return draft.add_standby(executor, node, Mode(draft.plan.recovery)) if node else ""


def told_of(draft: Draft, before: Mapping[str, Assignment]) -> tuple[Told, ...]:
    """What was told, and which executors are protected no longer."""
    bare = sorted(
        e for e, record in draft.records.items() if record.degraded and e in before and not before[e].degraded
    )
    if not bare:
        return tuple(draft.told)
    return (*draft.told, degraded(draft.plan.model, bare))


def degraded(model: str, executors: Collection[str]) -> Told:
    """These executors would lose what they have in memory if something happened now."""
    whose = f"executor {next(iter(executors))}" if len(executors) == 1 else f"executors {', '.join(executors)}"
    return Told("executor.degraded", f"no standby could take over for {whose} of {model}", "warning")
