"""What a node offers to those who talk to it: the seam between the HTTP gateway and the node agent.

The gateway calls `NodeService` and turns the structs below into JSON (`msgspec.to_builtins`). Every method has a
deadline of its own (`ClusterSettings.request`) and raises

ClusterError                 the root of what follows; HTTP 503 unless a subclass says otherwise
├── NotFound                 no such model, source, step, executor -> 404
├── Conflict                 it exists already, or its state forbids the operation -> 409
├── Misdirected              it was meant for another cluster -> 421
└── Unavailable              not now, but later (moving, restarting, Redis away) -> 503 + Retry-After
    ├── NotBegun             surely without effect
    └── RolledBack           an operation that not every node could do -> 503 with reasons per node

and `UsageError` (also `FlowError`) for what the caller has to change -> 422.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

import msgspec

from penstock.cluster.balance_views import ChannelView as ChannelView
from penstock.cluster.balance_views import PlacementView as PlacementView
from penstock.cluster.balance_views import RebalanceView as RebalanceView
from penstock.cluster.checkpoint_record import CheckpointRecord
from penstock.cluster.operation_views import OperationView as OperationView
from penstock.cluster.operation_views import VersionView as VersionView
from penstock.cluster.replica_views import MoveOrder as MoveOrder
from penstock.cluster.replica_views import ReplicaView as ReplicaView
from penstock.cluster.replica_views import SplitOrder as SplitOrder
from penstock.cluster.replica_views import UpdateView as UpdateView
from penstock.errors import ClusterError
from penstock.flow.graph import Topology


class NotFound(ClusterError):
    """There is no such thing."""


class Conflict(ClusterError):
    """The present state forbids it."""


class Unavailable(ClusterError):
    """It cannot be done at this moment. `retry_after` in seconds; `nodes` gives reasons per node, where they differ."""

    def __init__(
        self,
        message: str,
        *,
        remedy: str | None = None,
        retry_after: float = 1.0,
        nodes: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after = retry_after
        self.nodes = nodes or {}


class Misdirected(ClusterError):
    """The request was meant for another cluster."""


class NotBegun(Unavailable):
    """Nobody has taken it on, so it may be asked again without harm."""


class RolledBack(Unavailable):
    """An operation on a model was rolled back: no node has it. `nodes` gives their reasons, `operation` its id."""

    def __init__(self, message: str, *, remedy: str | None, nodes: dict[str, str], operation: str) -> None:
        super().__init__(message, remedy=remedy, nodes=nodes)
        self.operation = operation


class NodeView(msgspec.Struct, kw_only=True):
    """One member of the cluster."""

    id: str
    """The node's name, unique in the cluster."""
    address: str
    """Its HTTP address, `http://host:port`."""
    incarnation: int
    """Grows each time that the node joins."""
    live: bool
    """Whether its lease is in force."""
    leader: bool = False
    role: str = "compute"
    host: str = ""
    pid: int = 0
    cpus: int = 0
    memory: int = 0
    """Bytes of physical memory."""
    slots: int = 0
    """Executors that placement likes to give it at most."""
    executors: int = 0
    """Executors placed on it."""
    workers: int = 0
    """Worker processes, warm ones included."""
    cpu: float = 0.0
    """CPU seconds per second, used by its executors."""
    rss: int = 0
    """Resident bytes of its agent and workers."""
    network: float = 0.0
    """Bytes per second that its executors send to and receive from other nodes."""
    buffer: int = 0
    """Bytes that wait to be taken in by its executors."""
    bottleneck: str = ""
    """The resource that has been over its bound for some time, with its use."""
    refused: int = 0
    """Stale commands that were refused: decisions of a leader whose time was over, plans older than the one that runs.
    """
    applied: int = 0
    """The catalogue revision that it has applied."""
    version: str = ""


class ExecutorView(msgspec.Struct, kw_only=True):
    """One executor of an online model, where it is, and what it does right now."""

    id: str
    """`stage.index`."""
    steps: tuple[str, ...] = ()
    node: str = ""
    pid: int = 0
    """The worker process; 0: none at the moment."""
    epoch: str = ""
    """`term.counter`."""
    state: str = "starting"
    """`starting`, `running`, `finished`, `failed`."""
    restarts: int = 0
    records_in: int = 0
    """Since it started."""
    records_out: int = 0
    rate_in: float = 0.0
    """Records per second, over the last seconds."""
    rate_out: float = 0.0
    cpu: float = 0.0
    """CPU seconds per second."""
    memory: int = 0
    """Bytes: its part of its worker's."""
    state_bytes: int = 0
    """About what a move would have to carry."""
    network: float = 0.0
    """Bytes per second to and from other nodes."""
    buffer: int = 0
    """Bytes that wait to be taken in."""
    groups: dict[int, float] = {}
    """Key group -> records per second, while much waits to be taken in."""
    hot_key: Any = None
    """Then: the most frequent key …"""
    hot_share: tuple[float, float] = (0.0, 0.0)
    """… its share of the records, at least and at most …"""
    hot_group: int | None = None
    """… and its key group."""
    busy: float = 0.0
    queue: int = 0
    keys: int = 0
    watermark: int | None = None
    lag: int | None = None
    progress: float | None = None
    latency: list[float] | None = None
    """End-to-end p50, p95, p99 in seconds."""
    counters: dict[str, int] = {}
    role: str = ""
    """With recovery `passive` or `active`: `primary`, unless this tells of a standby."""
    replica: str = ""
    behind: int = 0
    """See `ReplicaView`, as for the next one."""
    kept_bytes: int = 0
    degraded: bool = False
    """No standby could take over: a crash now would cost what it has in memory."""
    replicas: list[ReplicaView] = []
    """Its primary and its standbys; empty with recovery `none`."""
    moving_to: str = ""
    """The node that it is being moved to."""
    key_groups: int = 0
    """How many of the 256 it has, if its stage was ever split or merged."""


class ModelView(msgspec.Struct, kw_only=True):
    """One model of the catalogue with what is known of it now."""

    name: str
    """`group/name`."""
    version: str = ""
    """Of its package, as its author wrote it."""
    digest: str = ""
    """sha256 of its package."""
    desired: str
    """`online` or `offline`: what was asked for."""
    status: str
    """`offline`, `starting`, `online`, `degraded` (some executors are being restarted, or have no standby that could
    take over), `stopping`, `finished` (a bounded flow has ended), `failed`."""
    generation: int
    """The catalogue revision that made it what it is: grows with every change."""
    config: dict[str, Any] = {}
    executors_per_stage: int | None = None
    recovery: str = "none"
    topology: Topology | None = None
    schema: dict[str, Any] = {}
    """Setting -> what its author says of it (type, default, limits …)."""
    requires: list[str] = []
    """What its environment holds besides the library."""
    operation: str = ""
    """The operation that is changing it at this moment."""
    user: str = ""
    """Who changed it last."""
    epoch: str = ""
    error: str = ""
    """Why it failed, for people."""
    restarts: int = 0
    """Executors restarted since it went online."""
    promotions: int = 0
    """How often a standby took over after a loss, since it went online."""
    restores: int = 0
    """How often everything was restored from a durable checkpoint, since it went online."""
    split: str = ""
    """The split or merge that is under way."""
    update: UpdateView | None = None
    """The live update that is under way, or why the last one failed."""
    lost: int = 0
    """Records known to be lost by restarts since it went online (recovery `none`)."""
    keys_lost: int = 0
    """Keys whose state was lost by restarts since it went online, as last reported before (recovery `none`)."""
    rate_in: float = 0.0
    """Records per second read by its sources."""
    rate_out: float = 0.0
    """Records per second that came out of its last stages."""
    records_in: int = 0
    records_out: int = 0
    latency: list[float] | None = None
    checkpoint: CheckpointRecord | None = None
    """`None`: it has none (recovery `none`), or none was begun yet."""
    counters: dict[str, int] = {}
    executors: list[ExecutorView] = []
    changed: float = 0.0
    """When the catalogue entry changed last, seconds since 1970 (Redis time)."""


class PackageView(msgspec.Struct, kw_only=True):
    """A package that a node has received and checked."""

    digest: str
    size: int
    name: str
    """As its manifest says; empty: the flow's own name counts."""
    group: str
    version: str
    flow: str
    requires: list[str] = []
    recovery: str = "none"
    schema: dict[str, Any] = {}


class ChangePlan(msgspec.Struct, kw_only=True):
    """What an operation would do, without doing it."""

    kind: str
    model: str
    possible: bool
    reason: str = ""
    """Why it would be refused."""
    remedy: str = ""
    changes: list[str] = []
    """What would be different, in words: version, configuration, steps, environment."""
    nodes: dict[str, str] = {}
    """node -> what it would have to do."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """How an operation is asked for."""

    key: str = ""
    """Idempotency key: a repeat gets the first answer."""
    user: str = ""
    """Who asks, for the audit trail."""
    timeout: float | None = None
    """Seconds that the nodes have to prepare; default: `ClusterSettings.operation`."""
    wait: float | None = None
    """Seconds until the caller is answered with what is known then; default: until the end."""
    dry_run: bool = False


ASK = Ask()
"""Nothing in particular."""


class Outcome(msgspec.Struct, kw_only=True):
    """What came of an operation. One of them is set."""

    operation: OperationView | None = None
    """It goes on (202), or it is done."""
    model: ModelView | None = None
    """As it is now; `None` after a delete, and while the operation goes on."""
    plan: ChangePlan | None = None
    """The answer to `Ask.dry_run`."""

    @property
    def pending(self) -> bool:
        """Whether the operation goes on."""
        return self.plan is None and self.operation is not None and not self.operation.settled


class MetricsView(msgspec.Struct, kw_only=True):
    """The latest metrics of the whole cluster: what `penstock top` and Prometheus show."""

    nodes: list[NodeView]
    models: list[ModelView]
    channels: dict[str, list[ChannelView]]
    """model -> its traffic matrix."""


class LogEntry(msgspec.Struct, kw_only=True):
    """One line of the cluster's log: who did what, what failed, what a model said."""

    id: str
    """Ordered; give it back as `after` to continue."""
    time: float
    """Seconds since 1970."""
    kind: str
    """`node.joined`, `node.lost`, `leader.elected`, `model.added`, `model.online` (asked for), `model.running` (it is
    online), `model.offline`, `model.deleted`, `model.failed`, `executor.restarted`, `worker.lost`, `model.log` …"""
    text: str
    level: str = "info"
    node: str = ""
    model: str = ""
    user: str = ""
    """Who asked for it."""


class Pushed(msgspec.Struct):
    """The records were retained by the source."""

    taken: int


class Lane(msgspec.Struct, frozen=True):
    """Where a push is to go."""

    number: int | None = None
    """The index of the executor of the source's stage that takes it (modulo their number), wherever it runs. `None`:
    the node chooses, for records of one (client, seq) always the same."""
    cluster: str = ""
    """`Addresses.cluster`, where the caller has this node's address from there."""


ANY_LANE = Lane()
"""The node chooses."""


class LaneView(msgspec.Struct, kw_only=True):
    """One of the executors that read a push source."""

    lane: int
    executor: str
    """`stage.index`."""
    node: str
    """Where it runs now."""
    url: str = ""
    """That node's address; empty: it is gone."""


class Addresses(msgspec.Struct, kw_only=True):
    """Where records for a push source can be sent."""

    model: str
    source: str
    cluster: str = ""
    """A name of this cluster; a node of another one refuses what is meant for this one."""
    revision: int
    """Of the plan; it grows when an executor moves or is started elsewhere."""
    lanes: list[LaneView]
    nodes: dict[str, str]
    """Live node -> its address: every one of them takes records for every lane."""


class NoRoom(msgspec.Struct):
    """Nothing was taken: the source's queue is full. Try again after `retry_after` seconds (HTTP 429)."""

    retry_after: float = 1.0


class Found(msgspec.Struct):
    """The answer to a look-up. `found` False: the key has no state."""

    found: bool
    value: Any = None


class Page(msgspec.Struct):
    """Keys and values of a step. `cursor` None: there is nothing more."""

    items: list[tuple[Any, Any]]
    cursor: str | None = None


class Health(msgspec.Struct, kw_only=True):
    """Liveness of this process and its state in the cluster."""

    node: str
    incarnation: int
    leader: bool
    problems: list[str]
    """Why the node is not ready; empty: it is."""


class NodeService(Protocol):
    """What the gateway calls. Implemented by `penstock.cluster.agent.NodeAgent`."""

    @property
    def node_id(self) -> str:
        """This node's name."""
        ...

    async def health(self) -> Health:
        """Never waits for Redis."""
        ...

    async def ready(self) -> list[str]:
        """Why this node is not ready to serve; `[]`: it is. Never waits for Redis."""
        ...

    async def nodes(self) -> list[NodeView]:
        """All members, and those whose lease ran out a short while ago, by name."""
        ...

    async def models(self) -> list[ModelView]:
        """The catalogue with status and rates, by name."""
        ...

    async def model(self, name: str) -> ModelView:
        """One model; `name` is `group/name`, or a bare name of the group `default`. Raises `NotFound`."""
        ...

    # Operations: on every node or on none. They raise `RolledBack` with the reasons of the nodes, `NotFound` and
    # `Conflict` when they may not begin, `UsageError` and `FlowError` for what the caller has to change.

    async def receive(self, chunks: AsyncIterator[bytes]) -> PackageView:
        """Take a package (a wheel as `penstock.model.package.build` makes it) for an operation that follows. It is
        kept for some minutes. Raises `PackageError` (422) when it is broken, hostile or too large."""
        ...

    async def add_model(
        self, digest: str, name: str | None = None, config: dict[str, Any] | None = None, *, ask: Ask = ASK
    ) -> Outcome:
        """Add the model of a received package. `name`: `group/name` or `name`; default: what the manifest says, else
        the flow's own name. `config`: what it is configured with until an update or `online` says otherwise. Raises
        `Conflict` when there is one of that name."""
        ...

    async def update_model(
        self,
        name: str,
        digest: str | None = None,
        config: dict[str, Any] | None = None,
        *,
        live: bool = False,
        ask: Ask = ASK,
    ) -> Outcome:
        """Give it another package, another configuration, or both. `live`: while it is online, keeping its state."""
        ...

    async def rollback(self, name: str, to: int | None = None, *, live: bool = False, ask: Ask = ASK) -> Outcome:
        """Bring back the version of generation `to`, default: the one before the present one. `live`: as an update."""
        ...

    async def delete_model(self, name: str, *, ask: Ask = ASK) -> Outcome:
        """Remove it everywhere. It has to be offline."""
        ...

    async def online(
        self,
        name: str,
        config: dict[str, Any] | None = None,
        executors: int | None = None,
        recovery: str | None = None,
        *,
        replication: dict[str, float] | None = None,
        ask: Ask = ASK,
    ) -> Outcome:
        """Run it on the cluster with `executors` per stage (default: the flow's). Waits until it runs. Raises
        `ClusterError` with the author's error when it cannot be loaded (it is then `failed`)."""
        ...

    async def move(
        self, name: str, executor: str, node: str, *, user: str = "", wait: float | None = None
    ) -> MoveOrder:
        """Have the primary of an executor on another node. Waits until it is there, or is known to stay where it is, at
        most `wait` seconds. Raises `NotFound`, `Conflict` for a model without replicas, `Unavailable`."""
        ...

    async def split(self, name: str, what: str, *, user: str = "") -> SplitOrder:
        """Have an executor of a keyed stage give half of its key groups to a new one: see `split_requests`."""
        ...

    async def offline(self, name: str, *, ask: Ask = ASK) -> Outcome:
        """Stop it and wait until its executors are gone."""
        ...

    async def versions(self, name: str) -> list[VersionView]:
        """Its versions, the present one first. Raises `NotFound`."""
        ...

    async def operations(self) -> list[OperationView]:
        """Operations that go on, and those that ended within the last seconds, the latest first."""
        ...

    async def operation(self, id: str) -> OperationView:
        """One operation, also when it ended up to a day ago. Raises `NotFound`."""
        ...

    async def cancel_operation(self, id: str, user: str = "") -> OperationView:
        """Roll it back if it is not decided yet. Raises `NotFound`, `Conflict` when it is too late."""
        ...

    async def logs(self, model: str, limit: int = 100, after: str | None = None) -> list[LogEntry]:
        """What the model's code printed and logged, and its errors; as `log`. Raises `NotFound`."""
        ...

    def follow_logs(self, model: str, after: str | None = None) -> AsyncIterator[LogEntry]:
        """As `follow`, of `logs`."""
        ...

    async def addresses(self, model: str, source: str) -> Addresses:
        """Where records for a push source can be sent. Raises as `push`."""
        ...

    async def push(
        self, model: str, source: str, records: list[Any], client: str | None = None, seq: int | None = None,
        lane: Lane = ANY_LANE,
    ) -> Pushed | NoRoom:  # fmt: skip
        """Hand records to a push source: all of them or none. Repeats of (client, seq) on the same lane are taken once.
        Raises `NotFound` for an unknown model or source, `Conflict` when it is offline or the source does not take
        pushed records, `Unavailable` while its executor is being restarted, `Misdirected` (421)."""
        ...

    async def lookup(self, model: str, step: str, key: Any) -> Found:
        """The state of one key; `key` as the flow sees it. The gateway passes the text of the URL: text that finds
        nothing is looked up as a number too, if it looks like one. Raises `NotFound` for model or step,
        `Conflict` when the model is offline, `Unavailable`."""
        ...

    async def listing(self, model: str, step: str, limit: int = 100, cursor: str | None = None) -> Page:
        """Keys and values over all executors of the step, ordered by key text. Raises as `lookup`."""
        ...

    async def results(self, model: str, step: str | None = None, limit: int = 100) -> list[Any]:
        """The latest records that reached `collect` sinks of the model, on all nodes, oldest first."""
        ...

    async def placement(self, model: str) -> PlacementView:
        """Where its executors are. Raises `NotFound`."""
        ...

    async def rebalance(
        self, *, dry_run: bool = False, strategy: str | None = None, model: str | None = None
    ) -> RebalanceView:
        """Where executors had better be, by a strategy (default: the cluster's), and unless `dry_run`: begin to move
        them, a few at a time. Raises `UsageError` for a strategy that there is not and for limits that cannot be kept,
        `NotFound`, and `Conflict` when what would have to move cannot."""
        ...

    async def metrics(self) -> MetricsView:
        """The latest metrics of the whole cluster, at most a few seconds old. Works from memory when Redis is away."""
        ...

    async def log(self, model: str | None = None, limit: int = 100, after: str | None = None) -> list[LogEntry]:
        """Without `after` the last `limit` entries, else the first `limit` after it; oldest first."""
        ...

    def follow(self, model: str | None = None, after: str | None = None) -> AsyncIterator[LogEntry]:
        """New entries as they come (from now, or after `after`), until the iterator is closed or the node stops."""
        ...

    async def internal(self, token: str, body: bytes) -> bytes:
        """Serve a request of another node: the gateway routes `POST /internal/call` here, `token` is the header
        `X-Penstock-Cluster`, the body and the answer are msgpack (`application/msgpack`, answer always HTTP 200).
        Raises `PermissionError` for a wrong token (HTTP 403)."""
        ...
