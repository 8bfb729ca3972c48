"""What a node tells about placement: where executors are, cut, load, moves and reasons. Part of `service`."""

from __future__ import annotations

import msgspec


class SituationView(msgspec.Struct, kw_only=True):
    """What a placement amounts to under the traffic of the last seconds."""

    cut: float
    """Share of the traffic that crosses between nodes, 0 to 1; a record counts as 32 bytes beside its content."""
    records: float
    """Per second between nodes."""
    bytes: float
    """Per second between nodes."""
    latency: float
    """Seconds from source to sink, estimated by the hops on the way."""
    load: dict[str, float]
    """node -> cores that executors use."""
    broken: list[str] = []
    """Limits that it does not keep."""


class EdgeView(msgspec.Struct, kw_only=True):
    """What flows from one executor to another at present."""

    producer: str
    consumer: str
    source: str
    """The producer's node."""
    target: str
    records: float
    """Per second."""
    bytes: float
    """Per second."""
    remote: bool
    """Whether it crosses between nodes."""


class ResourceView(msgspec.Struct, kw_only=True):
    """What an executor uses."""

    cpu: float = 0.0
    """In cores."""
    memory: int = 0
    network: float = 0.0
    """Bytes per second to and from other nodes."""
    buffer: int = 0
    """Bytes that wait to be taken in."""
    state: int = 0
    """Bytes that a move would carry, about."""


class ChannelView(msgspec.Struct, kw_only=True):
    """One cell of the traffic matrix."""

    edge: int
    producer: str
    consumer: str
    records: int = 0
    bytes: int = 0
    rate: float = 0.0
    """Records per second."""
    byte_rate: float = 0.0
    queue_bytes: int = 0
    full: float = 0.0
    """The share of its buffer that is in use."""
    lost: int = 0
    """Records known to be lost with a dead consumer."""
    remote: bool = False
    """Whether the two ends are on different nodes."""


class PlacementView(msgspec.Struct, kw_only=True):
    """Where the executors of one model are, and why."""

    model: str
    strategy: str
    """The one that placed it when it came online."""
    epoch: str
    assignment: dict[str, str]
    """`stage.index` -> node."""
    load: dict[str, int]
    """node -> executors of this model."""
    cut: float
    """Share of the measured bytes that cross between nodes, 0 to 1, since the executors started."""
    channels: list[ChannelView] = []
    now: SituationView | None = None
    """Cut, load and latency of the last seconds."""
    heaviest: list[EdgeView] = []
    """The edges with most traffic at present."""
    resources: dict[str, ResourceView] = {}
    """`stage.index` -> what it uses."""
    standbys: dict[str, list[str]] = {}
    """`stage.index` -> the nodes of its standbys."""
    stays: dict[str, str] = {}
    """`stage.index` -> why it cannot be moved now."""
    split: str = ""
    """The split or merge that is under way."""
    key_groups: dict[str, int] = {}
    """`stage.index` -> how many of the 256 key groups it has, of stages that were ever split or merged."""


class MoveView(msgspec.Struct, kw_only=True):
    """An executor that would be, or is, moved."""

    model: str
    executor: str
    """`stage.index`."""
    source: str
    """The node that it leaves."""
    target: str
    state: int = 0
    """Bytes that it carries, about."""
    obstacle: str = ""
    """Why it is not carried out although it would pay; empty: it can be."""


class ModelVerdict(msgspec.Struct, kw_only=True):
    """Whether the proposal for one model is worth its moves."""

    model: str
    apply: bool
    reason: str
    moves: int
    """How many were proposed."""
    cut_before: float
    cut_after: float


class RebalanceView(msgspec.Struct, kw_only=True):
    """The running placement against a better one."""

    strategy: str
    dry_run: bool
    apply: bool
    """Whether there are moves that are worth it."""
    reason: str
    """In one line, for people."""
    before: SituationView
    after: SituationView
    moves: list[MoveView] = []
    """Those that are worth it."""
    cost: int = 0
    """Bytes that the moves cost."""
    gain: float = 0.0
    """Bytes per second less between nodes."""
    horizon: float = 0.0
    """Seconds in which the gain has to pay for the cost."""
    models: list[ModelVerdict] = []
    blocked: list[str] = []
    """Nodes that have too much, of which nothing fits elsewhere."""
    faults: dict[str, str] = {}
    """group -> why there is no proposal for it; its placement stays."""
    staying: dict[str, int] = {}
    """reason -> how many executors could not move now."""
