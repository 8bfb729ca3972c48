"""What an agent does about the replicas on its node, and what it tells its workers."""

from __future__ import annotations

import pytest
from tests.cluster.test_reconcile import at
from tests.cluster.test_succession import Case

from penstock.cluster import orders
from penstock.cluster.converge import converge
from penstock.cluster.hosting import (
    ConnectModel,
    Forget,
    HandOver,
    Here,
    Host,
    LoadModel,
    Phase,
    ReleaseReplicas,
    ReportConnected,
    StartModel,
    StopModel,
)
from penstock.cluster.plan import Lives, executor_of
from penstock.settings import RunSettings
from penstock.worker.messages import Epoch

LIVE = {"a": Lives(incarnation=1), "b": Lives(incarnation=1)}


def case(**more):
    return Case(live=LIVE, **more)


def places(c, node="a"):
    return frozenset(name for name, seat in c.plan.replicas.items() if seat.node == node)


def host(c, phase=Phase.STARTED, worker=1, here=None, **more):
    held = places(c) if here is None else frozenset(here)
    values = {"connected": c.plan.revision, "knows": c.plan.revision, **more}
    return Host(worker, "g/m", Epoch(4, 1), held, phase, **values)


def act(c, *hosts, node="a", **more):
    return converge(at(hosts, node=node, **more), {"g/m": c.state})


def test_everything_on_a_node_is_one_load_once():
    c = case()
    load = LoadModel("g/m", Epoch(4, 1), tuple(sorted(places(c))), None)
    assert len(load.executors) == 4
    assert act(c) == [load]
    attempted = {("g/m", name, Epoch(4, 1)) for name in load.executors}
    assert act(c, attempted=attempted) == []
    message = orders.load(
        c.plan, load.executors, load.epoch, "/code", RunSettings(), silence=1.0, checkpoint_url="file:///x"
    )
    assert {name: r.name for name, r in message.replicas.items()} == {executor_of(n): n for n in load.executors}
    assert {name: r.record for name, r in message.replicas.items()} == c.plan.records
    assert message.settings.metrics_interval == 0.25
    assert message.checkpoint_url == "file:///x"
    assert message.restore is None


def test_gates_open_after_all_are_loaded_and_all_nodes_are_connected():
    c = case()
    c.change(run={}, connected={})
    loaded = host(c, Phase.LOADED, connected=0, knows=0)
    assert act(c, loaded) == []
    c.run("loaded")
    c.change(connected={})
    assert act(c, loaded) == [ConnectModel(1, "g/m", c.plan.revision)]
    told = host(c, Phase.LOADED)
    assert act(c, told) == [ReportConnected("g/m", c.plan.revision)]
    c.change(connected={"a": c.plan.revision})
    assert act(c, told) == []
    c.change(connected={"a": c.plan.revision, "b": c.plan.revision})
    assert act(c, told) == [StartModel(1, "g/m")]
    assert act(c, host(c)) == []


def test_a_node_that_cannot_load_yet_does_not_say_that_it_is_connected():
    c = case()
    c.change(connected={})
    here = Here("a", 1, [], {}, {})  # the package is being fetched
    assert converge(here, {"g/m": c.state}) == []
    part = host(c, Phase.LOADED, here=sorted(places(c))[:1])
    assert not [a for a in act(c, part) if isinstance(a, ReportConnected)]


def test_a_promotion_is_told_at_once_though_another_standby_is_being_loaded():
    c = case().protected()
    known = host(c)
    c.say(c.primary("1.0"), state="lost")
    c.write()
    standby_here = known if c.plan.records["1.0"].primary in places(c) else None
    node = "a" if standby_here else "b"
    mine = host(c, here=places(c, node), connected=c.plan.revision - 1, knows=c.plan.revision - 1)
    assert act(c, mine, node=node)[0] == ConnectModel(1, "g/m", c.plan.revision)
    c.write()  # a new standby
    actions = act(c, mine, node=node)
    connects = [a for a in actions if isinstance(a, ConnectModel)]
    assert connects == [ConnectModel(1, "g/m", c.plan.revision, complete=False)]
    message = orders.connect(c.state)
    new = c.standby("1.0")
    assert new not in message.replicas
    assert message.records["1.0"].primary in message.replicas
    assert message.epochs["1.0"] == Epoch(*c.plan.records["1.0"].since)
    told = host(c, here=places(c, node), knows=c.plan.revision - 2)
    assert not [a for a in act(c, told, node=node) if isinstance(a, ConnectModel)]
    c.run("loaded")
    assert ConnectModel(1, "g/m", c.plan.revision) in act(c, told, node=node)
    assert orders.connect(c.state).replicas[new] == f"ipc://{new}"


def test_replicas_that_are_not_wanted_are_released_one_by_one_and_once():
    c = case().protected()
    old = c.primary("1.0")
    node = c.node(old)
    before = host(c, here=places(c, node))
    c.say(old, state="silent")
    c.write()
    release = ReleaseReplicas(1, "g/m", (old,))
    assert release in act(c, before, node=node)
    again = host(c, here=before.executors, releasing=frozenset({old}))
    assert release not in act(c, again, node=node)
    rest = host(c, here=before.executors - {old})
    assert Forget("g/m", (old,)) in act(c, rest, node=node)


def test_a_worker_with_nothing_wanted_stops_the_model_and_nobody_waits_for_it():
    c = case().protected()
    stale = Host(7, "g/m", Epoch(3, 9), frozenset({"1.0@a/3.9"}), Phase.STARTED)
    good = host(c, knows=0)
    actions = act(c, stale, good)
    assert StopModel(7, "g/m") in actions
    assert ConnectModel(1, "g/m", c.plan.revision) in actions


def test_nothing_starts_after_a_restore_while_something_of_before_runs():
    c = case()
    c.change(checkpoint=2)
    old = dict(c.state.run)
    c.say(c.primary(), state="lost")
    c.write()
    assert c.plan.restores == 1
    c.change(run={})
    c.run("loaded")
    fresh = Host(
        2,
        "g/m",
        Epoch(4, c.plan.replicas[c.primary()].epoch.counter),
        places(c),
        Phase.LOADED,
        c.plan.revision,
        c.plan.revision,
    )
    assert act(c, fresh) == [StartModel(2, "g/m")]
    left = next(name for name in old if "@b/" in name)
    c.change(run={**c.state.run, left: old[left]})
    assert act(c, fresh) == []
    message = orders.load(c.plan, sorted(places(c)), fresh.epoch, "x", RunSettings(metrics_interval=0.1), silence=1.0)
    assert message.restore == 2
    assert message.settings.metrics_interval == 0.1


def test_the_primary_is_told_to_hand_over():
    from tests.cluster.test_moving import move

    c = case().protected()
    node = c.node(c.primary())
    move(c, c.node(c.standby()))
    c.write()
    wanted = HandOver(1, "g/m", "1.0", c.standby())
    mine = host(c, here=places(c, node))
    assert wanted in act(c, mine, node=node)
    other = "b" if node == "a" else "a"
    assert wanted not in act(c, host(c, here=places(c, other)), node=other)


def test_two_loads_of_a_model_on_a_node_need_two_workers():
    c = case().protected()
    name = next(n for n in sorted(places(c, "b")) if c.primary(executor_of(n)) == n)
    c.say(name, state="lost")
    c.settle()
    node_of_new = c.node(c.standby(executor_of(name)))
    assert node_of_new == "b"
    kept = host(c, here=places(c, "b") - {c.standby(executor_of(name))})
    loads = [a for a in act(c, kept, node="b", pools={1: ("g", "")}) if isinstance(a, LoadModel)]
    assert [load.worker for load in loads] == [None]
    assert [load.executors for load in loads] == [(c.standby(executor_of(name)),)]


@pytest.mark.parametrize("recovery", ["none", "active"])
def test_connect_names_everybody(recovery):
    c = Case(recovery)
    message = orders.connect(c.state)
    assert set(message.endpoints) == set(c.plan.executors)
    assert message.endpoints["0.1"] == f"ipc://{c.plan.seat('0.1')}"
    assert set(message.replicas) == set(c.plan.replicas)
    assert message.checkpoint is None
