"""Which resource of which node is the limit."""

from __future__ import annotations

import pytest
from tests.cluster.scenes import GIB, member, model, reported, view

from penstock.cluster.bottlenecks import Bottlenecks, Use, uses
from penstock.cluster.measuring import measured
from penstock.settings import Balancing

M = "default/m"
HOMES = {"0.0": "a", "1.0": "a", "1.1": "b"}
SETTINGS = Balancing(gamma=0.8, fill=0.5, network=1e6)


def used(seen, **measurements):
    return uses(measured(seen, reported(seen, **measurements)), seen.members, SETTINGS)


def test_every_resource_of_a_node_has_a_use_and_a_bound():
    flows = {(M, "0.0", "1.0"): 5e5, (M, "0.0", "1.1"): 2e5}
    queued = {(M, "0.0", "1.0"): 3_000_000}
    cpu = {(M, "0.0"): 0.25, (M, "1.0"): 0.5, (M, "1.1"): 0.125}
    found = used(view(model(M, HOMES)), flows=flows, queued=queued, cpu=cpu, rss=10**9)
    assert found["a", "cpu", ""] == Use(0.75, 2.0)
    assert found["a", "memory", ""] == Use(10**9, 4 * GIB)
    assert found["a", "network", ""] == Use(2e5, 5e5)  # what stays on the node does not count
    assert found["b", "network", ""] == Use(2e5, 5e5)
    assert found["a", "buffer", ""] == Use(3_000_000, pytest.approx(0.8 * 4 * 2**20))
    assert found["a", "worker", "group default"] == Use(0.75, 0.8)


def test_nodes_of_one_machine_share_its_cpu_and_memory():
    members = (member("a", host="h"), member("b", host="h"), member("c"))
    found = used(view(model(M, HOMES), members=members), cpu={(M, "1.0"): 1.5, (M, "1.1"): 0.75}, rss=10**9)
    assert found["a", "cpu", "machine h"] == found["b", "cpu", "machine h"] == Use(2.25, 2.0)
    assert found["a", "memory", "machine h"].used == 2 * 10**9
    assert found["c", "cpu", ""] == Use(0.0, 2.0)
    assert found["a", "cpu", "machine h"].over


def test_a_bound_that_is_not_known_bounds_nothing():
    seen = view(model(M, HOMES))
    found = uses(measured(seen, reported(seen)), seen.members, Balancing(gamma=None))
    assert {resource for _, resource, _ in found} == {"cpu", "memory"}


def test_a_bottleneck_is_what_stays_over_its_bound():
    over, fine = {("a", "cpu", ""): Use(3.0, 2.0)}, {("a", "cpu", ""): Use(2.0, 2.0)}
    watch = Bottlenecks(sustained=10.0)
    assert watch.watch(0.0, over) == ((), ())
    assert watch.watch(9.0, fine) == ((), ())  # for a moment it was not
    assert watch.watch(10.0, over) == ((), ())
    assert watch.watch(19.0, over) == ((), ())
    (begun,), ended = watch.watch(20.0, over)
    assert (begun.node, begun.resource, str(begun), ended) == ("a", "cpu", "cpu: 3.00 of 2.00 cores", ())
    assert watch.watch(21.0, {("a", "cpu", ""): Use(4.0, 2.0)}) == ((), ())  # told once
    assert [found.use.used for found in watch.of("a")] == [4.0]
    assert watch.of("b") == ()
    begun, (over_now,) = watch.watch(22.0, fine)
    assert (begun, over_now.resource, watch.all()) == ((), "cpu", ())


def test_a_node_that_is_gone_is_no_bottleneck_any_more():
    watch = Bottlenecks(sustained=0.0)
    watch.watch(0.0, {("a", "buffer", ""): Use(9e6, 1e6)})
    _, ended = watch.watch(1.0, {})
    assert [found.node for found in ended] == ["a"]
    assert str(ended[0]) == "buffer: 9,000,000 of 1,000,000 bytes"
