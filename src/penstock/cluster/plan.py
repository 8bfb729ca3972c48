"""What is written down in Redis about a model: the catalogue's entry, the leader's plan, the agents' reports.

Only the leader writes plans, each with its term; only the agent of a node writes what runs on it, each time with its
incarnation. Both are JSON in Redis, readable by people.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from penstock.cluster.checkpoint_record import CheckpointRecord
from penstock.exchange.keys import even_routing
from penstock.exchange.replica.assignment import Assignment
from penstock.exchange.replica.messages import Caught, Complete, Diverged, Refused
from penstock.exchange.split.messages import Prepared, Settled, Staged
from penstock.exchange.split.routing import Phase, Routing
from penstock.flow.graph import Topology
from penstock.settings import Replication
from penstock.worker.messages import Epoch, ExecutorId

ALIVE = frozenset({"loaded", "running", "finished"})
"""States of an executor that can be reached."""
GONE = frozenset({"lost", "failed"})
"""States of an executor that must be started anew, with a higher epoch."""
SILENT = "silent"
"""The state of a replica whose worker is there and says nothing."""
NONE = "none"
"""The recovery class without replicas."""


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A model as the catalogue has it, with what this node knows of its package."""

    name: str
    desired: str
    """`online` or `offline`."""
    generation: int
    """The catalogue revision with which it went online, or that made it what it is: plans serve a generation, and live
    updates leave it."""
    revision: int = 0
    """The catalogue revision that made it what it is; every change is based on one."""
    digest: str
    """sha256 of its package."""
    version: str = ""
    config: dict[str, Any] = {}
    executors: int | None = None
    recovery: str = "none"
    replication: Replication = Replication()
    topology: Topology | None = None
    """`None`: this node does not have the package yet."""
    lock: str = ""
    """The operation that is changing it."""
    user: str = ""
    changed: float = 0.0
    error: str = ""
    """Set by the leader when the model cannot run; gone with the next online."""
    counter: int = 0
    """The highest plan revision that there has been."""

    @property
    def group(self) -> str:
        """Models of one group and environment share worker processes."""
        return self.name.partition("/")[0]


class Failure(msgspec.Struct, frozen=True):
    """The leader's word that a model cannot run."""

    generation: int
    error: str


class Assigned(msgspec.Struct, frozen=True, kw_only=True):
    """Where one executor is to run, and as which incarnation."""

    node: str
    incarnation: int
    epoch: Epoch
    restarts: int = 0
    of: int = 0
    """The update whose version it runs; 0: the one that the plan began with."""


class Upgrade(msgspec.Struct, frozen=True, kw_only=True):
    """Another version of the model that takes over while it is online."""

    revision: int
    """The catalogue's, which names it."""
    digest: str
    config: dict[str, Any]
    version: str
    begun: float
    """Seconds of Redis time, as the next two."""
    shadowed: float = 0.0
    """When all executors of the new version computed beside the old ones."""
    ordered: bool = False
    """Executors are being handed over: until `proved` no durable checkpoint is taken, so that there is a way back."""
    done: float = 0.0
    """When the last executor was handed over."""
    proved: bool = False
    """The trial is over. The first durable checkpoint of the new version ends the update: until there is one, the old
    version is the only one that something could be restored with."""
    losses: list[float] = []
    """When shadows were lost although their nodes were not."""
    trouble: str = ""
    """Why the latest one was."""


class FailedUpgrade(msgspec.Struct, frozen=True):
    """An update that was given up: the version before it runs."""

    revision: int
    error: str


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants the primary of an executor to be on another node."""

    to: str
    """The node."""
    generation: int
    """Of the model for which it was asked."""
    asked: float
    """Seconds of Redis time, as `deadline`."""
    deadline: float
    """It is given up then."""
    user: str = ""


class ShiftWish(msgspec.Struct, frozen=True, kw_only=True):
    """Key groups of an executor of a keyed stage are to go to another one."""

    generation: int
    """Of the model for which it was asked."""
    asked: float
    """Seconds of Redis time, as `deadline`."""
    deadline: float
    """If it has not begun by then it is given up."""
    giver: int
    groups: tuple[int, ...]
    taker: int = -1
    """-1: a new executor."""
    reason: str = ""
    user: str = ""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model's executors are to run.

    With recovery `none` each executor has one place, in `executors`. Otherwise it has replicas, each in a place of its
    own (`replicas`), and a record that says who of them is primary; `executors` repeats the places of the primaries.
    """

    model: str
    number: int
    """Unique among the models that have a plan: frames between workers carry it."""
    generation: int
    """Of the catalogue's entry that this plan serves."""
    revision: int
    """Grows with every plan of the model."""
    digest: str
    """Of the package; every node has it in its library."""
    config: dict[str, Any]
    counts: dict[int, int]
    executors: dict[str, Assigned]
    """`str(ExecutorId)` -> its assignment."""
    strategy: str = "even"
    failures: list[float] = []
    """When executors were restarted after a failure, seconds of Redis time, the latest few."""
    keys_lost: int = 0
    """Keys that executors held when they were lost, as far as they had reported; over all restarts of this plan."""
    recovery: str = NONE
    replication: Replication = Replication()
    """How its standbys are kept up to date."""
    records: dict[str, Assignment] = {}
    """Executor -> who is primary, who stands by, who protects."""
    replicas: dict[str, Assigned] = {}
    """Replica -> its place. A name is `executor@…`, unique for ever."""
    handovers: dict[str, str] = {}
    """Executor -> the standby that its primary is to hand over to."""
    restore: int | None = None
    """The durable checkpoint that its primaries began with."""
    at_once: int = 0
    """The latest revision that nobody may wait with until new standbys are loaded."""
    setbacks: dict[str, list[tuple[float, str]]] = {}
    """Executor -> when it lost standbys (Redis time), and the nodes that these were on, the latest few."""
    silences: list[float] = []
    """When primaries were replaced because they were silent, the latest few."""
    promotions: int = 0
    """How often a standby took over after a loss."""
    restores: int = 0
    """How often everything was restored from a durable checkpoint."""
    version: str = ""
    """Of the package, for people and for `migrate`."""
    of: int = 0
    """The update that brought the version; 0: the model went online with it."""
    written: Epoch = Epoch()
    """Term and revision with which it was decided. What a plan leaves out makes it no earlier."""
    upgrade: Upgrade | None = None
    """The version that is taking over."""
    failed_upgrade: FailedUpgrade | None = None
    """The latest one that could not."""
    routings: dict[int, Routing] = {}
    """Keyed stage -> who owns which key group, as far as that has ever changed: see `penstock.cluster.shifting`."""
    births: dict[str, int] = {}
    """Executors that are not among those of `counts` -> when they were added."""
    shift_since: float = 0.0
    """When the latest split or merge began, seconds of Redis time."""

    @property
    def replicated(self) -> bool:
        """Whether executors have replicas."""
        return self.recovery != NONE

    @property
    def seats(self) -> dict[str, Assigned]:
        """Everything that has a place of its own: replicas, or the executors that have none."""
        return self.replicas if self.replicated else self.executors

    @property
    def latest(self) -> Epoch:
        """The latest epoch in it: plans of one generation are ordered by this."""
        records = (Epoch(*record.epoch) for record in self.records.values())
        return max(self.written, *(seat.epoch for seat in self.seats.values()), *records)

    def nodes(self) -> set[str]:
        """The nodes that have a part in it."""
        return {assigned.node for assigned in self.seats.values()}

    @property
    def durable_of(self) -> int:
        """The update whose version a durable checkpoint has that is taken under this plan; 0: as `of`."""
        return self.upgrade.revision if self.upgrade is not None and self.upgrade.proved else self.of

    def upgraded(self, seat: Assigned) -> bool:
        """Whether a place is of the version that is taking over."""
        return self.upgrade is not None and seat.of == self.upgrade.revision

    def owner(self, stage: int, group: int) -> int:
        """The executor of a keyed stage that has a key group."""
        table = self.routings.get(stage)
        return table.table[group] if table is not None else even_routing(self.counts[stage])[group]

    def askable(self, stage: int, group: int) -> list[int]:
        """Who may know the keys of a group, first its owner: while it is on its way the other one may have it, and
        what has left there since it was asked has arrived here."""
        record, owner = self.routings.get(stage), self.owner(stage, group)
        if record is None or record.shift is None or group not in record.shift.groups:
            return [owner]
        shift = record.shift
        other = shift.giver if owner == shift.taker else shift.taker
        begins = record.phase is Phase.PREPARING or f"{stage}.{other}" not in self.executors
        return [owner, owner] if begins else [owner, other, owner]

    def indexes(self, stage: int) -> list[int]:
        """The executors of a stage."""
        ids = map(executor_id, self.executors)
        return sorted(one.index for one in ids if one.stage == stage)

    def members(self) -> dict[str, int]:
        """All executors -> when they were added; empty as long as no stage has changed."""
        return {executor: self.births.get(executor, 0) for executor in self.executors} if self.routings else {}

    def unborn(self) -> frozenset[str]:
        """An executor that is being added and owns nothing yet: nobody need wait for it."""
        shifts = [record.shift for record in self.routings.values() if record.undecided]
        return frozenset(shift.newcomer for shift in shifts if shift is not None and shift.newcomer)

    def seat(self, executor: str) -> str:
        """What has the executor's place, under which its agent reports: its primary, or itself."""
        return self.records[executor].primary if self.replicated else executor


Report: TypeAlias = Complete | Caught | Diverged | Refused | Prepared | Staged | Settled
"""What a replica tells the leader."""


class RunEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent says of one executor, or of one replica."""

    epoch: Epoch
    node: str
    incarnation: int
    state: str
    """`loaded`, `running`, `finished`, `lost` (the worker died), `failed` (the model's code or connectors), or `silent`
    (a replica whose worker says nothing)."""
    endpoint: str = ""
    server_key: str = ""
    pid: int = 0
    error: str = ""
    kind: str = ""
    """The class name of the error."""
    loading: bool = False
    """It failed while it was loaded, before it did anything."""
    keys: int = 0
    """Keys that it held when it was last heard of; told once it is gone."""
    reports: list[Report] = []
    """The latest of each kind and standby."""
    pause: float = 0.0
    """A replica that has taken over: seconds for which its executor stood still."""


class Lives(msgspec.Struct, frozen=True, kw_only=True):
    """A member whose lease is in force, as placement sees it."""

    incarnation: int
    slots: int = 1


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one model at one moment."""

    entry: ModelEntry
    plan: Plan | None = None
    run: dict[str, RunEntry] = {}
    connected: dict[str, int] = {}
    """node -> the plan revision whose endpoints all its workers know."""
    lost: dict[str, int] = {}
    """node -> records that its workers counted as lost."""
    moves: dict[str, Move] = {}
    """Executor -> where it is wanted."""
    shifts: dict[int, ShiftWish] = {}
    """Keyed stage -> the split or merge that is wanted."""
    checkpoint: int | None = None
    """The last durable checkpoint that is complete."""
    durable: CheckpointRecord | None = None
    """How the checkpoints of this generation go, as far as that is on record."""
    plan_sha: str = ""
    """SHA-1 of the plan's text in Redis: another plan has another one."""


def executor_id(text: str) -> ExecutorId:
    """The inverse of `str(ExecutorId)`."""
    stage, _, index = text.partition(".")
    return ExecutorId(int(stage), int(index))


def executor_of(seat: str) -> str:
    """The executor whose place or replica this is."""
    return seat.partition("@")[0]


def present(plan: Plan, run: Mapping[str, RunEntry], seat: str) -> RunEntry | None:
    """What is said of the planned incarnation of a seat."""
    entry = run.get(seat)
    return entry if entry is not None and entry.epoch == plan.seats[seat].epoch else None


def reachable(plan: Plan, run: Mapping[str, RunEntry]) -> bool:
    """Whether everything in the plan has been loaded in its planned incarnation and is not gone since."""
    return all((entry := present(plan, run, seat)) is not None and entry.state in ALIVE for seat in plan.seats)


def runs_unprotected(state: ModelState) -> bool:
    """Whether all primaries run, but some of them have no standby that could take over."""
    plan = state.plan
    if plan is None or status(state) != "degraded":
        return False
    known = (present(plan, state.run, plan.seat(executor)) for executor in plan.executors)
    return plan.replicated and all(report is not None and report.state in ("running", "finished") for report in known)


def status(state: ModelState) -> str:
    """What `ModelView.status` says."""
    entry, plan, run = state.entry, state.plan, state.run
    if entry.desired == "offline":
        return "stopping" if plan is not None or run else "offline"
    if entry.error:
        return "failed"
    if plan is None or plan.generation != entry.generation:
        return "starting"
    known = [present(plan, run, plan.seat(executor)) for executor in plan.executors.keys() - plan.unborn()]
    states = {"starting" if report is None else report.state for report in known}
    if states == {"finished"}:
        return "finished"
    if states <= {"running", "finished"}:
        bare = any(record.degraded for name, record in plan.records.items() if name not in plan.unborn())
        return "degraded" if bare else "online"
    again = plan.promotions or plan.restores or any(assigned.restarts for assigned in plan.executors.values())
    return "degraded" if again else "starting"
