"""The rules under Hypothesis: any order of any events on a cluster, then calm."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from tests.cluster.transaction.simulator import LEASE, World

from penstock.cluster.transaction import admission
from penstock.cluster.transaction.records import Kind, Operation

NODES = st.sampled_from(("n0", "n1", "n2"))
KINDS = st.sampled_from(list(Kind))


class Cluster(RuleBasedStateMachine):
    """`World` checks every change of the store and everything that is put in effect; the rest is checked at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(1, {"calls", "refuse", "apply"}, 3)
        self.world.up()

    @rule(
        kind=st.sampled_from(list(Kind)), name=st.sampled_from(("g/a", "g/b")), at=NODES, timeout=st.integers(1, 6000)
    )
    def submit(self, kind: Kind, name: str, at: str, timeout: int) -> None:
        digest = f"h{len(self.world.clients)}" if kind in (Kind.ADD, Kind.UPDATE) else ""
        self.world.submit(Operation(kind=kind, model=name, digest=digest), at, timeout)

    @rule()
    def submit_something_possible(self) -> None:
        self.world.propose()

    @rule(seconds=st.floats(0.001, 3.0))
    def wait(self, seconds: float) -> None:
        self.world.run(self.world.now + seconds)

    @rule(node=NODES, back=st.floats(0.01, 6.0))
    def crash(self, node: str, back: float) -> None:
        self.world.crash(self.world.hosts[node], back)

    @rule(node=NODES, seconds=st.floats(0.1, 8.0))
    def pause(self, node: str, seconds: float) -> None:
        self.world.hosts[node].paused_until = self.world.now + seconds

    @rule(milliseconds=st.integers(-100_000, 100_000))
    def move_the_clock(self, milliseconds: int) -> None:
        self.world.jumped = True
        self.world.shift += milliseconds

    @rule(seconds=st.floats(0.1, 5.0))
    def lose_the_store_for(self, seconds: float) -> None:
        self.world.down_until = self.world.now + seconds

    @rule()
    def empty_the_store(self) -> None:
        self.world.flush()

    @rule(node=NODES)
    def strike_off(self, node: str) -> None:
        incarnation = self.world.store.members.get(node)
        if incarnation is not None:
            self.world.call(admission.forget, node, incarnation, int(LEASE * 1000))

    def teardown(self) -> None:
        self.world.rest()
        self.world.repeat_keys()


Cluster.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)
TestCluster = Cluster.TestCase
