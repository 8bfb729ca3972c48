"""Numbers that bound memory and time, in one place. Everything has a default that suits a laptop."""

from __future__ import annotations

import msgspec

KEY_GROUPS = 256
"""Keys belong to this many groups, for ever: state is stored, moved and split by key group."""


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How executors exchange batches and checkpoint. Sizes in bytes, times in seconds."""

    batch_records: int = 1024
    """A source reads at most this many records at once; a channel sends when it has gathered so many."""
    credit_bytes: int = 4 * 2**20
    """How many bytes one channel may have in flight (sent, effect not yet confirmed)."""
    checkpoint_interval: float = 1.0
    """Time from the start of one durable checkpoint to the start of the next."""
    checkpoint_timeout: float = 60.0
    """A checkpoint that takes longer is given up (and tried again at the next interval)."""
    checkpoints_kept: int = 2
    metrics_interval: float = 0.5
    """How often a worker reports its metrics."""
    idle_lane: float = 5.0
    """An unbounded source partition silent for so long no longer holds event time back."""
    flush_interval: float = 0.25
    """A sink's buffer is flushed at least so often, also when the executor is never idle."""
    push_queue_bytes: int = 16 * 2**20
    """A push source refuses records (429) when so many bytes wait in it."""


class Replication(msgspec.Struct, frozen=True, kw_only=True):
    """How a standby is kept up to date; of one model, set by its developer or when it goes online."""

    checkpoint_interval: float = 0.2
    """Seconds between two checkpoints to a passive standby. The first bound that is reached counts."""
    checkpoint_records: int = 0
    """Records between two; 0: not bounded."""
    checkpoint_bytes: int = 8 * 2**20
    """Bytes of input between two: what a passive standby keeps, and has to replay, is bounded by this."""
    digest_every: int = 64
    """Log positions between two comparisons of an active standby's output with the primary's."""
    handover_lag: int = 8
    """A planned promotion stops the primary when the other replica is at most so many log positions behind."""


class Balancing(msgspec.Struct, frozen=True, kw_only=True):
    """How executors of online models are placed by what was measured, and when they move. Times in seconds."""

    strategy: str = "adaptive"
    """Its name in `penstock.placement.registry`."""
    initial: str = "even"
    """The strategy for a model that comes online, of which nothing is measured yet: `even` or `offline`."""
    alpha: float | None = 0.2
    """How uneven the numbers of executors per node may be; see docs/placement.md, as for the next four."""
    beta: float = 1.0
    """The share of the nodes that may be used."""
    gamma: float | None = 0.8
    """Cores that the executors of one worker may use; a worker is one loop. `None`: not bounded."""
    delta: int | None = None
    """Workers per node that may be used for one group."""
    fill: float = 0.9
    """The share of a node's CPU, memory and network that executors may use."""
    network: float = 0.0
    """Bytes per second that a node can send and receive together; 0: not known."""
    threshold: float = 0.1
    """The share of a model's traffic between nodes that a change has to save."""
    interval: float = 30.0
    """From one change of a model's placement to the next, at least."""
    horizon: float = 60.0
    """In this time the saved traffic has to pay for the moved bytes."""
    guard: float = 300.0
    """For so long an executor does not go back to where it came from."""
    half_life: float = 5.0
    """After this time a measurement counts half as much."""
    window: float = 30.0
    """What was not measured for so long is forgotten."""
    moves: int = 2
    """Executors that move at the same time, at most."""
    sustained: float = 10.0
    """A resource that is over its bound for so long is a bottleneck."""
    split: bool = True
    """Whether executors of keyed stages are split and merged without being asked, if `ClusterSettings.rebalance`; see
    docs/split.md, as for the next six."""
    split_full: float = 0.5
    """An executor is split when its input buffer is filled beyond this share …"""
    split_sustained: float = 2.0
    """… for so long without a break."""
    split_cooldown: float = 10.0
    """For so long after a split or merge nothing more is done to the stage."""
    split_most: int = 16
    """Executors of one stage that splits may lead to, at most."""
    merge_below: float = 0.3
    """Two executors are merged when one of them could do the work of both in this share of its time …"""
    merge_after: float = 120.0
    """… and that has been so for this long. No stage gets fewer executors than it went online with."""


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Leases and timeouts of the control plane, in seconds."""

    prefix: str = "penstock"
    """Redis keys are `{prefix}:…`; two clusters can share one Redis by different prefixes."""
    lease: float = 3.0
    """A node that does not renew for so long is no longer a member."""
    leader_lease: float = 3.0
    poll: float = 1.0
    """How often a node looks at Redis even if no bell rang."""
    silence: float = 1.0
    """A replica whose worker says nothing for so long is replaced. Workers with replicas report several times in it."""
    worker_start: float = 20.0
    """A worker that is not ready after so long is killed."""
    request: float = 10.0
    """The default deadline of a request between nodes."""
    warm_workers: int = 1
    """Idle workers that each node keeps ready (interpreter up, library imported, no user code)."""
    operation: float = 60.0
    """How long the nodes have to prepare an operation on a model, if the caller does not say."""
    found_after: float | None = 3.0
    """A Redis without any catalogue becomes a new cluster after so long, in which nodes that know one would have come;
    `None`: never."""
    replicas: int = 0
    """Replicas of Redis that must have an operation's decision before it is carried out."""
    upload_kept: float = 600.0
    """A package that was received and that no operation uses is removed after so long."""
    checkpoints: str | None = None
    """Where durable checkpoints of models live: any fsspec URL that all nodes reach, the same for all of them. `None`:
    there are none, and models with another recovery than `none` are refused."""
    rebalance: bool = True
    """Whether the leader moves executors by itself when that pays."""
    balancing: Balancing = Balancing()
