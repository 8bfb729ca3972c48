"""What simulated clusters have to come through, beyond the storms of `simulator.simulate`. Each returns statistics."""

from __future__ import annotations

from collections import Counter

from tests.cluster.transaction.hosts import Violation
from tests.cluster.transaction.simulator import World
from tests.cluster.transaction.trouble import LEASE, STORM

from penstock.cluster.transaction.records import Kind, Operation


def emptied_again_and_again(seed):
    """Eight losses of memory within seconds, among crashes, pauses and, in every other run, newcomers."""
    world = World(seed, {"flush", "pause", "crash", "calls", "stale", "refuse", "apply"}, 2 + seed % 2)
    world.up()
    if seed % 2 == 0:
        world.after(world.rng.uniform(0, STORM), world.join)
        world.after(world.rng.uniform(0, STORM), world.join)
    for _ in range(14):
        world.after(world.rng.uniform(0, STORM), world.trouble)
    for _ in range(8):
        world.after(world.rng.uniform(0, STORM), world.flush)
    world.storm()
    world.rest()
    world.repeat_keys()
    return world.stats


def away_for_everybody(seed, emptied, leases=6):
    """The store is away for many leases, and everything else works: nobody stops."""
    world = World(seed, set(), 1 + seed % 4)
    world.up()
    world.run(world.now + 2 * LEASE)
    for _ in range(3):
        world.after(world.rng.uniform(0, leases * LEASE), world.propose)
    calm = Counter(world.stats)
    world.go_away(leases * LEASE, emptied)
    world.length = (leases + 3) * LEASE
    world.storm()
    for what in ("stopped", "forgotten", "left"):
        world.fail([f"somebody was {what}"] if world.stats[what] > calm[what] else [])
    world.rest()
    world.repeat_keys()
    return world.stats


def cut_off(seed, leases=6):
    """One node alone is cut off from the store: it stops, and the others go on without it."""
    world = World(seed, set(), 2 + seed % 3)
    world.up()
    world.run(world.now + 2 * LEASE)
    one = world.hosts["n0"]
    world.stormy = True
    one.cut_until = world.now + leases * LEASE
    world.run(world.now + leases * LEASE * 0.6)
    if one.name in world.store.members or one.machine.trusted(world.now * one.drift) or one.running:
        raise Violation("n0 was cut off, and goes on")
    if any(h.machine.may_judge(world.now * h.drift) == (h is one) for h in world.hosts.values()):
        raise Violation("the wrong nodes judge")
    world.submit(Operation(kind=Kind.ADD, model="g/new", digest="new"), "n1")
    world.run(world.now + 8.0)
    if "g/new" not in world.latest:
        raise Violation("nothing can be done while n0 is cut off")
    world.rest()
    return world.stats


def cut_off_among_failing_calls(seed):
    """One node alone is cut off from the store, and others believe at times that they are, too."""
    world = World(seed, {"calls"}, 2 + seed % 2)
    world.up()
    world.call_fails = 0.3
    world.hosts["n0"].cut_until = world.now + 6 * LEASE
    world.run(world.now + 6 * LEASE)
    world.rest()
    return world.stats


def a_newcomer_at_a_bad_moment(seed):
    """All members are cut off from the store while somebody new arrives."""
    world = World(seed, set(), 2)
    world.up()
    world.run(world.now + 2 * LEASE)
    world.join()
    world.run(world.now + world.rng.uniform(0, 1.0))
    world.stormy = True
    for name in ("n0", "n1"):
        world.hosts[name].cut_until = world.now + 4 * LEASE
    world.run(world.now + 4 * LEASE)
    world.rest()
    return world.stats


def emptied_while_one_returns(seed):
    """A node that was struck off comes back just when the store loses its memory, and soon again."""
    world = World(seed, set(), 2)
    world.up()
    world.run(world.now + 2 * LEASE)
    world.stormy = True
    world.hosts["n1"].cut_until = back = world.now + 3 * LEASE
    world.run(back + world.rng.uniform(0, 1.0))
    world.flush()
    for _ in range(2):
        world.after(world.rng.uniform(0, 4.0), world.flush)
        world.after(world.rng.uniform(0, 4.0), world.crash, world.rng.choice(list(world.hosts.values())), 1.0)
    world.run(world.now + 4.0)
    world.rest()
    return world.stats
