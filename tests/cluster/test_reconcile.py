"""The leader's and the agents' decisions, without Redis and without processes, and both together in a small world."""

from __future__ import annotations

import random

import msgspec
import pytest

from penstock.cluster import reconcile
from penstock.cluster.converge import (
    ConnectModel,
    Forget,
    Here,
    Host,
    LoadModel,
    Phase,
    ReportConnected,
    StartModel,
    StopModel,
    converge,
)
from penstock.cluster.plan import Lives, ModelEntry, ModelState, RunEntry, status
from penstock.cluster.reconcile import DropPlan, GiveUp, Later, Nothing, Sweep, WritePlan, decide, pause
from penstock.flow.graph import EdgeShape, StageShape, Topology
from penstock.worker.messages import Epoch

SHAPE = Topology(
    flow="f",
    bounded=False,
    stages=(StageShape(0, ("s",), ("source",), True, False), StageShape(1, ("c",), ("count",), False, True)),
    edges=(EdgeShape(0, 0, "s", 0, 1, "c", 0, "shuffle"),),
)
LIVE = {"a": Lives(incarnation=1), "b": Lives(incarnation=1)}


def entry(**changes):
    values = {
        "name": "g/m", "digest": "d1", "desired": "online", "generation": 3, "topology": SHAPE,
        "executors": 2, **changes,
    }  # fmt: skip
    return ModelEntry(**values)


def planned(live=LIVE, **changes):
    decision = decide(ModelState(entry=entry(**changes)), live, term=4, now=100.0)
    assert isinstance(decision, WritePlan)
    return decision.plan


def reports(plan, state="running", **changes):
    return {
        name: RunEntry(
            epoch=a.epoch, node=a.node, incarnation=a.incarnation, state=state, endpoint=f"ipc://{name}", **changes
        )
        for name, a in plan.executors.items()
    }


def test_the_first_plan_spreads_the_executors_with_the_terms_epoch():
    plan = planned(counter=6)
    assert {name: a.node for name, a in plan.executors.items()} == {"0.0": "a", "0.1": "b", "1.0": "a", "1.1": "b"}
    assert {a.epoch for a in plan.executors.values()} == {Epoch(4, 7)}
    assert (plan.revision, plan.generation, plan.counts) == (7, 3, {0: 2, 1: 2})


def test_a_model_can_begin_where_its_graph_wants_it():
    from penstock.placement.plan import ExecutorKey

    chain = msgspec.structs.replace(SHAPE, edges=(EdgeShape(0, 0, "s", 0, 1, "c", 0, "pipe"),))  # 0.i feeds 1.i alone
    other = {ExecutorKey("g/other", 0, i): "a" for i in range(2)}
    state = ModelState(entry=entry(topology=chain, executors=2))
    plan = decide(state, LIVE, 1, 0.0, other, initial="offline").plan
    where = {name: assigned.node for name, assigned in plan.executors.items()}
    assert where["0.0"] == where["1.0"]
    assert where["0.1"] == where["1.1"]
    assert plan.strategy == "offline"


def test_a_strategy_that_fails_does_not_keep_a_model_from_running(monkeypatch):
    from penstock.placement import registry

    def broken(problem):
        raise ZeroDivisionError

    monkeypatch.setitem(registry.STRATEGIES, "offline", broken)
    plan = decide(ModelState(entry=entry()), LIVE, 1, 0.0, initial="offline").plan
    assert {name: a.node for name, a in plan.executors.items()} == {"0.0": "a", "0.1": "b", "1.0": "a", "1.1": "b"}


def test_a_plan_gets_a_number_that_no_other_model_has():
    state = ModelState(entry=entry(generation=70_000))
    assert decide(state, LIVE, 1, 0.0).plan.number == 70_000 - 65_536
    assert decide(state, LIVE, 1, 0.0, taken={4464, 4465}).plan.number == 4466
    assert isinstance(decide(state, LIVE, 1, 0.0, taken=range(65_536)), GiveUp)


def test_a_leader_without_the_package_leaves_the_model_alone():
    assert decide(ModelState(entry=entry(topology=None)), LIVE, 1, 0.0) == Nothing()


def test_other_models_count_as_load():
    from penstock.placement.plan import ExecutorKey

    state = ModelState(entry=entry(executors=1))
    decision = decide(state, LIVE, 1, 0.0, {ExecutorKey("g/other", 0, i): "a" for i in range(4)})
    assert {a.node for a in decision.plan.executors.values()} == {"b"}


def test_nothing_happens_without_nodes_or_when_all_is_well():
    assert decide(ModelState(entry=entry()), {}, 1, 0.0) == Nothing()
    plan = planned()
    assert decide(ModelState(entry=entry(), plan=plan, run=reports(plan)), LIVE, 5, 0.0) == Nothing()
    assert decide(ModelState(entry=entry(desired="offline")), LIVE, 5, 0.0) == Nothing()


def test_offline_failed_or_changed_models_lose_their_plan():
    plan = planned()
    for changed in (entry(desired="offline"), entry(error="broken"), entry(generation=4)):
        assert decide(ModelState(entry=changed, plan=plan), LIVE, 5, 0.0) == DropPlan()


def test_a_new_plan_waits_until_the_old_executors_are_gone():
    run = reports(planned())
    assert decide(ModelState(entry=entry(), run=run), LIVE, 5, 0.0) == Nothing()
    later = {"a": Lives(incarnation=2)}
    assert isinstance(decide(ModelState(entry=entry(), run=run), later, 5, 0.0), WritePlan)


def test_executors_of_a_dead_or_restarted_node_move_and_nothing_else_does():
    plan = planned()
    state = ModelState(entry=entry(), plan=plan, run=reports(plan))
    for live in ({"a": Lives(incarnation=1)}, {"a": Lives(incarnation=1), "b": Lives(incarnation=2)}):
        decision = decide(state, live, 5, 100.0)
        assert decision.restarted == ("0.1", "1.1")
        assert decision.plan.executors["0.0"] == plan.executors["0.0"]
        for name in decision.restarted:
            moved = decision.plan.executors[name]
            assert (moved.epoch, moved.restarts) == (Epoch(5, plan.revision + 1), 1)
            assert live[moved.node].incarnation == moved.incarnation
        assert decision.plan.failures == []  # a node that goes is not the model's fault


def lost_one(plan, now, state="lost", live=LIVE, **more):
    run = reports(plan)
    run["1.0"] = msgspec.structs.replace(run["1.0"], state=state, error="worker died", **more)
    return decide(ModelState(entry=entry(), plan=plan, run=run), live, 5, now)


def test_a_lost_executor_is_restarted_with_pauses_and_given_up_after_too_many():
    plan, now, restarts = planned(), 1000.0, 0
    while True:
        decision = lost_one(plan, now)
        if isinstance(decision, Later):
            assert decision.at > now
            now = decision.at
        elif isinstance(decision, WritePlan):
            restarts += 1
            assert decision.restarted == ("1.0",)
            assert decision.plan.executors["1.0"].epoch > plan.executors["1.0"].epoch
            plan = decision.plan
        else:
            break
    assert restarts == reconcile.FAILURES_ALLOWED
    assert isinstance(decision, GiveUp)
    assert "worker died" in decision.error
    assert isinstance(lost_one(plan, now + reconcile.FAILURE_WINDOW), WritePlan)  # an old failure is forgiven


def test_an_orphan_moves_at_once_even_while_a_failed_one_has_to_wait():
    plan = lost_one(planned(), 1000.0).plan
    run = reports(plan)
    run["1.0"] = msgspec.structs.replace(run["1.0"], state="lost")
    decision = decide(ModelState(entry=entry(), plan=plan, run=run), {"a": LIVE["a"]}, 5, 1000.01)
    assert decision.restarted == ("0.1", "1.1")


def test_pauses_grow_and_have_an_end():
    assert [pause(n) for n in (1, 2, 3, 9)] == [0.2, 0.4, 0.8, 5.0]


@pytest.mark.parametrize(("kind", "gives_up"), [("StepError", True), ("FlowError", True), ("ConnectorError", False)])
def test_an_error_that_would_only_come_again_ends_the_model(kind, gives_up):
    decision = lost_one(planned(), 0.0, state="failed", kind=kind)
    assert isinstance(decision, GiveUp if gives_up else WritePlan)


def test_what_cannot_be_loaded_the_first_time_is_given_up_and_later_is_tried_again():
    plan = planned()
    assert isinstance(lost_one(plan, 0.0, state="failed", kind="ConnectorError", loading=True), GiveUp)
    again = lost_one(plan, 0.0).plan
    assert isinstance(lost_one(again, 10.0, state="failed", kind="ConnectorError", loading=True), WritePlan)


def test_a_report_of_an_older_epoch_says_nothing():
    plan = lost_one(planned(), 0.0).plan
    run = reports(planned(), state="lost")
    run |= {name: r for name, r in reports(plan).items() if name != "1.0"}
    assert decide(ModelState(entry=entry(), plan=plan, run=run), LIVE, 5, 0.0) == Nothing()


def test_reports_of_nodes_that_are_gone_are_swept_when_the_model_is_offline():
    state = ModelState(entry=entry(desired="offline"), run=reports(planned()))
    assert decide(state, {"a": LIVE["a"]}, 5, 0.0) == Sweep(("0.1", "1.1"))


def test_status():
    plan = planned()
    online = entry()
    assert status(ModelState(entry=entry(desired="offline"))) == "offline"
    assert status(ModelState(entry=entry(desired="offline"), plan=plan)) == "stopping"
    assert status(ModelState(entry=online)) == "starting"
    assert status(ModelState(entry=online, plan=plan, run=reports(plan, "loaded"))) == "starting"
    assert status(ModelState(entry=online, plan=plan, run=reports(plan))) == "online"
    assert status(ModelState(entry=online, plan=plan, run=reports(plan, "finished"))) == "finished"
    assert status(ModelState(entry=entry(error="x"), plan=plan, run=reports(plan))) == "failed"
    again = lost_one(plan, 0.0).plan
    assert status(ModelState(entry=online, plan=again, run=reports(plan))) == "degraded"


# ---- the agent ------------------------------------------------------------------------------------------------------


def at(hosts=(), pools=None, attempted=(), node="a", incarnation=1):
    return Here(node, incarnation, list(hosts), pools or {}, {("g/m", False): ("g", "")}, set(attempted))


def host(plan, phase=Phase.STARTED, connected=0, worker=1, executors=("0.0", "1.0")):
    return Host(worker, "g/m", plan.executors[executors[0]].epoch, frozenset(executors), phase, connected)


def models(plan, run=None, connected=None):
    return {"g/m": ModelState(entry=entry(), plan=plan, run=run or {}, connected=connected or {})}


def test_only_its_own_executors_are_loaded_once_per_epoch_and_into_the_groups_worker():
    plan = planned()
    load = LoadModel("g/m", Epoch(4, 1), ("0.0", "1.0"), None)
    assert converge(at(), models(plan)) == [load]
    pools = {6: ("g", "env"), 7: ("g", ""), 8: ("other", "")}
    assert converge(at(pools=pools), models(plan)) == [LoadModel("g/m", Epoch(4, 1), ("0.0", "1.0"), 7)]
    assert converge(at(incarnation=2), models(plan)) == []
    attempted = {("g/m", name, Epoch(4, 1)) for name in ("0.0", "1.0")}
    assert converge(at(attempted=attempted), models(plan)) == []
    assert converge(at([host(plan, Phase.LOADING)]), models(plan)) == []


def test_gates_open_only_after_all_nodes_are_loaded_and_have_connected():
    plan = planned()
    loaded = host(plan, Phase.LOADED)
    own = {name: r for name, r in reports(plan, "loaded").items() if r.node == "a"}
    assert converge(at([loaded]), models(plan, own)) == []
    everything = reports(plan, "loaded")
    assert converge(at([loaded]), models(plan, everything)) == [ConnectModel(1, "g/m", 1)]
    connected = host(plan, Phase.LOADED, connected=1)
    assert converge(at([connected]), models(plan, everything)) == [ReportConnected("g/m", 1)]
    assert converge(at([connected]), models(plan, everything, {"a": 1})) == []
    assert converge(at([connected]), models(plan, everything, {"a": 1, "b": 1})) == [StartModel(1, "g/m")]


def test_a_restart_elsewhere_makes_running_ones_connect_again_and_nothing_more():
    plan = planned()
    again = decide(
        ModelState(entry=entry(), plan=plan, run=reports(plan)), {"a": LIVE["a"], "b": Lives(incarnation=2)}, 5, 0.0
    ).plan
    running = host(plan, Phase.STARTED, connected=1)
    assert converge(at([running]), models(again, reports(plan), {"a": 1, "b": 1})) == []
    assert converge(at([running]), models(again, reports(again), {"a": 1, "b": 1})) == [ConnectModel(1, "g/m", 2)]


def test_what_is_not_wanted_is_stopped_and_forgotten():
    plan = planned()
    running = host(plan, Phase.STARTED)
    assert converge(at([running]), {}) == [StopModel(1, "g/m")]
    assert converge(at([running]), {"g/m": ModelState(entry=entry(desired="offline"))}) == [StopModel(1, "g/m")]
    assert converge(at([host(plan, Phase.STOPPING)]), {}) == []
    left = ModelState(entry=entry(desired="offline"), run=reports(plan))
    assert converge(at(), {"g/m": left}) == [Forget("g/m", ("0.0", "1.0"))]


def test_an_executor_that_got_another_epoch_takes_its_fellows_down_with_it():
    plan = planned()
    newer = lost_one(plan, 0.0).plan
    assert converge(at([host(plan)]), models(newer, reports(plan))) == [StopModel(1, "g/m")]


def test_two_epochs_on_one_node_need_two_workers():
    plan = planned({"a": LIVE["a"]})
    newer = lost_one(plan, 0.0, live={"a": LIVE["a"]}).plan
    kept = host(plan, executors=("0.0", "0.1", "1.1"))
    actions = converge(at([kept], pools={1: ("g", "")}), models(newer, reports(plan)))
    assert actions == [LoadModel("g/m", Epoch(5, 2), ("1.0",), None)]


# ---- all together ---------------------------------------------------------------------------------------------------


class World:
    """Two to four nodes, one model, a leader: everything but processes and Redis. Any node may crash at any time."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.state = ModelState(entry=entry(executors=self.random.randint(1, 4)))
        self.live = {name: Lives(incarnation=1) for name in "abcd"[: self.random.randint(2, 4)]}
        self.hosts = {name: {} for name in self.live}
        self.attempted = {name: set() for name in self.live}
        self.workers = 0
        self.now, self.term = 0.0, 1
        self.loaded = []

    def change(self, **changes):
        self.state = msgspec.structs.replace(self.state, **changes)

    def lead(self):
        decision = decide(self.state, self.live, self.term, self.now)
        entry_now = self.state.entry
        match decision:
            case WritePlan(plan=plan):
                assert plan.revision > entry_now.counter
                self.change(plan=plan, entry=msgspec.structs.replace(entry_now, counter=plan.revision))
            case DropPlan():
                self.change(plan=None, connected={})
            case Sweep(executors=names):
                self.change(run={n: r for n, r in self.state.run.items() if n not in names})
            case GiveUp(error=error):
                raise AssertionError(error)
        return not isinstance(decision, Nothing)

    def say(self, name, host, state):
        run = dict(self.state.run)
        for executor in host.executors:
            run[executor] = RunEntry(
                epoch=host.epoch, node=name, incarnation=self.live[name].incarnation, state=state, endpoint="x"
            )
        self.change(run=run)

    def agent(self, name):
        hosts, homes = list(self.hosts[name].values()), {("g/m", False): ("g", "")}
        here = Here(name, self.live[name].incarnation, hosts, {}, homes, self.attempted[name])
        actions = converge(here, {"g/m": self.state})
        for action in actions:
            self.do(name, action)
        return bool(actions)

    def do(self, name, action):
        hosts = self.hosts[name]
        match action:
            case LoadModel():
                self.workers += 1
                made = Host(self.workers, "g/m", action.epoch, frozenset(action.executors), Phase.LOADED)
                for executor in action.executors:
                    key = (name, executor, action.epoch)
                    assert key not in self.loaded, "loaded twice"
                    self.loaded.append(key)
                    self.attempted[name].add(("g/m", executor, action.epoch))
                hosts[made.worker] = made
                self.say(name, made, "loaded")
            case StopModel(worker=worker):
                gone = hosts.pop(worker)
                plan = self.state.plan
                keep = {e for e in gone.executors if plan and plan.executors[e].epoch == gone.epoch}
                if keep:
                    self.say(name, msgspec_replace(gone, executors=frozenset(keep)), "lost")
            case ConnectModel(worker=worker, revision=revision):
                assert all(r.state in ("loaded", "running") for r in self.state.run.values())
                hosts[worker] = msgspec_replace(hosts[worker], connected=revision)
            case ReportConnected(revision=revision):
                self.change(connected={**self.state.connected, name: revision})
            case StartModel(worker=worker):
                hosts[worker] = msgspec_replace(hosts[worker], phase=Phase.STARTED)
                self.say(name, hosts[worker], "running")
            case Forget(executors=names):
                self.change(run={n: r for n, r in self.state.run.items() if n not in names or r.node != name})

    def trouble(self):
        name = self.random.choice(sorted(self.live))
        self.term += self.random.randint(0, 1)
        if self.random.random() < 0.5:  # a worker dies
            for worker, host in list(self.hosts[name].items())[:1]:
                del self.hosts[name][worker]
                self.say(name, host, "lost")
        else:  # the node crashes and comes back
            self.hosts[name], self.attempted[name] = {}, set()
            self.live[name] = Lives(incarnation=self.live[name].incarnation + 1)

    def settle(self):
        for _ in range(200):
            self.now += 1.0
            acted = [self.lead()] + [self.agent(name) for name in self.random.sample(sorted(self.live), len(self.live))]
            if not any(acted):
                return
        raise AssertionError(f"it does not settle: {self.state}")


def msgspec_replace(host, **changes):
    from dataclasses import replace

    return replace(host, **changes)


@pytest.mark.parametrize("seed", range(200))
def test_whatever_dies_everything_runs_again_in_the_end(seed, monkeypatch):
    monkeypatch.setattr(reconcile, "FAILURES_ALLOWED", 1000)
    world = World(seed)
    for _ in range(6):
        for _ in range(world.random.randint(0, 8)):
            if world.random.random() < 0.4:
                world.lead()
            else:
                world.agent(world.random.choice(sorted(world.live)))
        world.trouble()
    world.settle()
    assert status(world.state) == "online"
    running = sorted(e for hosts in world.hosts.values() for h in hosts.values() for e in h.executors)
    assert running == sorted(world.state.plan.executors)
    world.change(entry=msgspec.structs.replace(world.state.entry, desired="offline"))
    world.settle()
    assert status(world.state) == "offline"
    assert not any(world.hosts.values())
