"""What a worker and its supervisor (a node agent, or `penstock run`) say to each other.

A stream socket carries length-prefixed msgpack of the tagged structs below (`penstock.worker.control`). End-of-file
on it means that the other side is gone: a worker then exits, a supervisor then counts the worker as dead.
"""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.exchange.replica.assignment import Assignment
from penstock.exchange.replica.messages import Caught, Complete, Diverged, Refused
from penstock.exchange.split.messages import Prepared, Settled, Staged
from penstock.exchange.split.routing import Routing
from penstock.flow.graph import Topology
from penstock.settings import Replication, RunSettings


class ExecutorId(msgspec.Struct, frozen=True, array_like=True, order=True):
    """One parallel instance of a stage of a model."""

    stage: int
    index: int

    def __str__(self) -> str:
        return f"{self.stage}.{self.index}"


class Epoch(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Which incarnation of a plan somebody speaks for: later ones are greater; older ones are refused."""

    term: int = 0
    counter: int = 0


class ReplicaLoad(msgspec.Struct, frozen=True):
    """What one replica of an executor has to know when it is loaded."""

    name: str
    """Of this instance: used once and never again."""
    record: Assignment
    migrate_from: str | None = None
    """For a replica of a later version that takes over keyed state: the version that the state comes from."""


# ---- supervisor -> worker -------------------------------------------------------------------------------------------


class Message(msgspec.Struct, tag_field="t"):
    """The root of all messages."""


class Load(Message, tag="load"):
    """Import a flow and prepare executors, gates shut. Answered by `Loaded` or `Failed`."""

    model: str
    """The model's name within this worker: `group/name`, or the flow's name."""
    target: str
    """A file or directory, optionally `path:object`."""
    number: int
    """Unique among the models of the cluster, 0 to 65535: frames carry it."""
    epoch: Epoch
    executors: list[ExecutorId]
    """The ones to run here."""
    counts: dict[int, int]
    """Executors per stage, over all workers."""
    config: dict[str, Any] = {}
    settings: RunSettings = RunSettings()
    checkpoint_url: str | None = None
    """Where durable checkpoints live (an fsspec URL); `None`: none are taken."""
    restore: int | None = None
    """The checkpoint to restore from; `None`: start empty. With replicas it counts for primaries; standbys get their
    state from them."""
    replicas: dict[str, ReplicaLoad] = {}
    """`str(ExecutorId)` -> its replica here. Empty: recovery `none`; otherwise one for each of `executors`."""
    replication: Replication = Replication()
    routings: dict[int, Routing] = {}
    """With replicas: the routing of keyed stages in which it has ever changed."""
    members: dict[str, int] = {}
    """With `routings`: `str(ExecutorId)` of all executors -> 0, or when it was added to those of `counts`."""


class Connect(Message, tag="connect"):
    """Where every executor of the model is reached. Sent again when one moved or was restarted with a new epoch.
    Answered by `Connected`."""

    model: str
    endpoints: dict[str, str]
    """`str(ExecutorId)` -> the worker's data endpoint (`ipc://…` or `tcp://…`)."""
    epochs: dict[str, Epoch]
    """`str(ExecutorId)` -> the epoch of its present incarnation."""
    server_keys: dict[str, str] = {}
    """endpoint -> CURVE public key, for `tcp` endpoints."""
    records: dict[str, Assignment] = {}
    """With replicas: `str(ExecutorId)` -> the leader's record of every executor, and `endpoints` are the primaries'."""
    replicas: dict[str, str] = {}
    """Replica name -> the endpoint of its worker."""
    checkpoint: int | None = None
    """The last durable checkpoint that is complete: what sinks of a promoted replica have made visible."""
    routings: dict[int, Routing] = {}
    """As in `Load`, for the next, too."""
    members: dict[str, int] = {}


class Handover(Message, tag="handover"):
    """The leader wants a planned promotion: the primary of `executor` here is to hand over to `standby`. May be
    repeated."""

    model: str
    executor: ExecutorId
    standby: str


class Release(Message, tag="release"):
    """Drop single replicas; the model's others go on. Answered by `Released`; without others the model is gone."""

    model: str
    executors: list[ExecutorId]


class Start(Message, tag="start"):
    """Open the gates: executors begin to work. Answered by `Running`.

    Send it to a worker when all others have answered `Connected` to a `Connect` that names this one: a peer refuses
    whom it does not know, for good."""

    model: str


class Barrier(Message, tag="barrier"):
    """Sources are to start checkpoint number `checkpoint`."""

    model: str
    checkpoint: int


class Committed(Message, tag="committed"):
    """Checkpoint `checkpoint` is complete and durable: sinks make it visible, sources acknowledge."""

    model: str
    checkpoint: int


class Drain(Message, tag="drain"):
    """Sources stop reading. `finish`: as if the input had ended (windows fire), executors answer with `Finished`;
    otherwise the state is left as it is for a last checkpoint, which the supervisor asks for next."""

    model: str
    finish: bool = True


class Stop(Message, tag="stop"):
    """Drop the model's executors now. Answered by `Stopped`."""

    model: str


class Lookup(Message, tag="lookup"):
    """The state of one key; answered by `Reply` with the value, or with `found: false`."""

    id: int
    model: str
    step: str
    key: Any


class Listing(Message, tag="listing"):
    """Keys and values of a step in this worker's executors, ordered by key text; answered by `Reply` with
    `{"items": [[key, value], …]}` strictly after `cursor`."""

    id: int
    model: str
    step: str
    limit: int = 100
    cursor: str | None = None


class Push(Message, tag="push"):
    """Records for a push source; answered by `Reply`: `value` is the number taken, `ok` False means "no room"."""

    id: int
    model: str
    source: str
    records: list[Any]
    client: str | None = None
    seq: int | None = None
    executor: int | None = None
    """The index of the executor whose lane takes them; `None`: any that is here."""


class Shutdown(Message, tag="shutdown"):
    """Exit in good order."""


# ---- worker -> supervisor -------------------------------------------------------------------------------------------


class Ready(Message, tag="ready"):
    """The worker is up. `endpoint` is its data socket."""

    pid: int
    endpoint: str
    server_key: str = ""


class Loaded(Message, tag="loaded"):
    """Executors are prepared."""

    model: str
    topology: Topology


class Connected(Message, tag="connected"):
    """The worker knows where all executors are and accepts frames from them."""

    model: str


class Running(Message, tag="running"):
    """The gates are open."""

    model: str


class Stopped(Message, tag="stopped"):
    """The executors are gone."""

    model: str


class Failed(Message, tag="failed"):
    """The model cannot go on in this worker."""

    model: str
    error: str
    """What a person reads: step, record, cause, remedy."""
    trace: str = ""
    kind: str = ""
    """The error's class name."""


class Released(Message, tag="released"):
    """These executors are gone from this worker."""

    model: str
    executors: list[ExecutorId]


class Reported(Message, tag="reported"):
    """What a replica's machine tells the leader; it may be said again."""

    model: str
    executor: ExecutorId
    replica: str
    report: Complete | Caught | Diverged | Refused | Prepared | Staged | Settled


class Alarmed(Message, tag="alarmed"):
    """Somebody must hear of this: a step that is not deterministic, a replica that cannot take over."""

    model: str
    executor: ExecutorId
    text: str


class Promoted(Message, tag="promoted"):
    """A replica here has taken over and processes; `pause` seconds after it heard that it should."""

    model: str
    executor: ExecutorId
    replica: str
    pause: float


class Retired(Message, tag="retired"):
    """A replica here has heard that it is not wanted any more, and has stopped. `Release` it."""

    model: str
    executor: ExecutorId
    replica: str


class Finished(Message, tag="finished"):
    """One executor has processed all its input (end of input, or drained)."""

    model: str
    executor: ExecutorId


class Checkpointed(Message, tag="checkpointed"):
    """One executor's part of a checkpoint is durable."""

    model: str
    checkpoint: int
    executor: ExecutorId
    bytes: int
    pause: float
    """Seconds from the first barrier's arrival to the snapshot being taken."""


class Collected(Message, tag="collected"):
    """Records that reached a `collect` sink."""

    model: str
    step: str
    records: list[Any]


class Reply(Message, tag="reply"):
    """The answer to a numbered request."""

    id: int
    ok: bool
    value: Any = None
    problem: str = ""


class CheckpointFailed(Message, tag="checkpoint_failed"):
    """One executor's part could not be written: the checkpoint is given up, the run goes on."""

    model: str
    checkpoint: int
    error: str


class ChannelMetrics(msgspec.Struct):
    """One row of the traffic matrix, counted by the producer since it started."""

    edge: int
    producer: ExecutorId
    consumer: ExecutorId
    records: int
    bytes: int
    frames: int
    queue_bytes: int
    """Sent and not yet confirmed."""
    full: float = 0.0
    """That as a share of the channel's credit; of executors with replicas."""
    lost: int = 0
    """Records known to be lost with a dead consumer (recovery `none`)."""


class ExecutorMetrics(msgspec.Struct):
    """One executor since it started. Times in seconds."""

    executor: ExecutorId
    records_in: int
    records_out: int
    """Sent to other executors, and taken by sinks."""
    cpu: float
    busy: float
    """Share of the last interval spent processing, 0 to 1."""
    queue: int
    """Frames received and not yet processed."""
    keys: int
    """Keys in state."""
    watermark: int | None
    counters: dict[str, int]
    """`late`, `skipped`, `dead_letter`, `stale_epoch` …, as `step.counter`."""
    latency: list[float] | None
    """End-to-end p50, p95, p99 in seconds since the last report, where the executor has a sink."""
    lag: int | None = None
    progress: float | None = None
    """Share of a bounded input that has been read."""
    role: str = ""
    """With replicas: `primary`, `passive` or `active`."""
    replica: str = ""
    behind: int = 0
    """Log positions that a standby holds and has not executed (active), or not in its last checkpoint (passive)."""
    kept_bytes: int = 0
    """With replicas: inputs and outputs kept until they are safe."""
    groups: dict[int, float] = {}
    """Key group -> records per second, of an executor with keys that has much to take in."""
    hot_key: Any = None
    """Its most frequent key, as it is or as text …"""
    hot_share: tuple[float, float] = (0.0, 0.0)
    """… the share of it, at least and at most …"""
    hot_group: int | None = None
    """… and its key group."""


class Metrics(Message, tag="metrics"):
    """Sent every `metrics_interval`."""

    model: str
    executors: list[ExecutorMetrics]
    channels: list[ChannelMetrics]
    rss: int = 0


class Log(Message, tag="log"):
    """A line for the model's log."""

    model: str
    level: str
    text: str


AnyMessage = (
    Load | Connect | Handover | Release | Start | Barrier | Committed | Drain | Stop | Lookup | Listing | Push
    | Shutdown | Ready | Loaded | Connected | Running | Stopped | Released | Reported | Alarmed | Promoted | Retired
    | Failed | Finished | Checkpointed | CheckpointFailed | Collected | Reply | Metrics | Log
)  # fmt: skip
