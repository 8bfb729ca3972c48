"""From what is planned and measured to a better placement of the models that are online; pure.

A worker runs models of one group, so each group is a problem of its own, in which a node is one place and what other
groups use there is not to be had. Whether a proposal is worth its moves is decided per model: no traffic crosses from
one model to another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import TypeAlias

from penstock.cluster import shifting, upgrading
from penstock.cluster.measuring import Vector, group_of, homes, key_of
from penstock.cluster.plan import NONE, ModelState, present
from penstock.cluster.view import Member, View
from penstock.errors import UsageError
from penstock.placement.balance import Blocked, Transfer, transfer
from penstock.placement.decide import History, Policy, Verdict, decide, severity
from penstock.placement.explain import Explanation, Move, explain
from penstock.placement.feasible import excesses, used_resources
from penstock.placement.limits import Limits
from penstock.placement.monitor import Pair
from penstock.placement.plan import (
    ExecutorKey,
    ExecutorLoad,
    NodeCapacity,
    Placement,
    Problem,
    Traffic,
    WorkerSlot,
    links,
)
from penstock.placement.registry import place
from penstock.placement.registry import strategy as known
from penstock.settings import Balancing

Amounts: TypeAlias = tuple[float, float, float]
"""CPU, memory and network."""
NOTHING: Amounts = (0.0, 0.0, 0.0)
BLIND = ("even", "offline")
"""Strategies that need no measurements."""
LEAST = 1e-3
"""The share of a node's resource that a group may count on although others use all of it."""


@dataclass(frozen=True)
class Scene:
    """The models that are online at one moment, as placement sees them."""

    current: Placement
    nodes: Mapping[str, NodeCapacity]
    """Those that may be used."""
    load: Mapping[ExecutorKey, ExecutorLoad] = field(default_factory=dict)
    traffic: Mapping[Pair, Traffic] = field(default_factory=dict)
    links: tuple[Pair, ...] = ()
    apart: tuple[Pair, ...] = ()
    stuck: Mapping[ExecutorKey, str] = field(default_factory=dict)
    """Executors that cannot move now, and why."""
    lossy: Mapping[ExecutorKey, str] = field(default_factory=dict)
    """Executors that would lose something by a move, and what: they are moved in thought alone."""
    standbys: Mapping[str, Vector] = field(default_factory=dict)
    """node -> what standbys use there. They follow their primaries, and are not placed here."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that have executors, by name."""
        return tuple(sorted({group_of(key.model) for key in self.current.workers}))

    def without(self, key: ExecutorKey) -> str:
        """Why an executor stays where it is, for people; empty: it can move."""
        return self.stuck.get(key) or self.lossy.get(key, "")


@dataclass(frozen=True)
class Part:
    """What would become of one model."""

    model: str
    verdict: Verdict

    @property
    def moves(self) -> tuple[Move, ...]:
        """What the strategy proposed, whether it is worth it or not."""
        return self.verdict.explanation.moves


@dataclass(frozen=True)
class Answer:
    """What a strategy makes of a scene."""

    strategy: str
    scene: Scene
    placement: Placement
    """With the moves that are worth it."""
    parts: tuple[Part, ...]
    whole: Explanation
    """The running placement against `placement`, all models together."""
    blocked: tuple[Blocked, ...] = ()
    """Nodes that have too much, of which nothing fits elsewhere."""
    faults: Mapping[str, UsageError] = field(default_factory=dict)
    """group -> why there is no proposal: its plan stays."""

    @property
    def moves(self) -> tuple[Move, ...]:
        """Those that are worth it, of the fullest nodes first: their room is what others wait for."""
        load = self.whole.before.load
        return tuple(sorted(self.whole.moves, key=lambda move: (-load.get(move.source.node, 0.0), move.executor)))


def slot(node: str) -> WorkerSlot:
    """A node as a place for the executors of a group."""
    return WorkerSlot(node, 0)


def limits_of(settings: Balancing) -> Limits:
    """Raises `UsageError` that names the limit which makes no sense."""
    gamma = inf if settings.gamma is None else settings.gamma
    return Limits(settings.alpha, settings.beta, gamma, settings.delta, settings.fill)


def policy_of(settings: Balancing) -> Policy:
    """Raises `UsageError` for what makes no sense."""
    return Policy(settings.threshold, settings.interval, settings.guard)


def check(settings: Balancing) -> None:
    """Raises `UsageError` that names a setting which makes no sense."""
    limits_of(settings)
    policy_of(settings)
    known(settings.strategy)
    if settings.initial not in BLIND:
        raise UsageError(
            f"the balancing setting initial cannot be {settings.initial!r}: nothing is measured then",
            remedy=f"it is {' or '.join(BLIND)}",
        )
    for name, value, fine, rule in (
        ("horizon", settings.horizon, settings.horizon > 0, "a time above 0 s"),
        ("sustained", settings.sustained, settings.sustained >= 0, "a time, and not negative"),
        ("network", settings.network, settings.network >= 0, "bytes per second; 0 when it is not known"),
        ("moves", settings.moves, settings.moves >= 1, "at least 1"),
    ):
        if not fine:
            raise UsageError(f"the balancing setting {name} cannot be {value}", remedy=f"it is {rule}")


def scene_of(
    view: View,
    load: Mapping[ExecutorKey, ExecutorLoad],
    traffic: Mapping[Pair, Traffic],
    settings: Balancing,
    moving: Collection[ExecutorKey] = (),
    standbys: Mapping[str, Vector] | None = None,
) -> Scene:
    """What is online in `view`. Executors of nodes that are gone are left out: they are about to be started elsewhere.
    Raises `UsageError` when no node is live."""
    members = {name: view.members[name] for name in sorted(view.live())}
    if not members:
        raise UsageError("no node is live: there is nowhere to place anything", remedy="start a node")
    home = homes(view)
    current: dict[ExecutorKey, WorkerSlot] = {}
    stuck: dict[ExecutorKey, str] = {}
    lossy: dict[ExecutorKey, str] = {}
    joined: list[Pair] = []
    for name, state in sorted(view.models.items()):
        if state.plan is None or state.entry.desired != "online" or state.plan.generation != state.entry.generation:
            continue
        for text in state.plan.executors:
            key = key_of(name, text)
            if home[key] in members:
                current[key] = slot(home[key])
                if key in moving:
                    stuck[key] = "it is being moved"
                elif why := _stuck(state, text):
                    stuck[key] = why
                elif state.plan.recovery == NONE:
                    lossy[key] = "a move would lose its state: the model runs with recovery none"
        if state.entry.topology is not None:
            joined += links(name, state.entry.topology, state.plan.counts)
    return Scene(
        current=Placement(current),
        nodes={name: _capacity(member, settings) for name, member in members.items()},
        load={key: own for key, own in load.items() if key in current},
        traffic={pair: flow for pair, flow in traffic.items() if pair[0] in current and pair[1] in current},
        links=tuple(pair for pair in joined if pair[0] in current and pair[1] in current),
        stuck=stuck,
        lossy=lossy,
        standbys=standbys or {},
    )


def _stuck(state: ModelState, executor: str) -> str:
    """Why an executor cannot be moved at this moment."""
    assert state.plan is not None
    if state.entry.lock:
        return "an operation is changing the model"
    if upgrading.under_way(state):
        return "the model is being updated"
    if state.shifts or shifting.under_way(state.plan) is not None:
        return "executors of the model are being split or merged"
    report = present(state.plan, state.run, state.plan.seat(executor))
    if report is None or report.state != "running":
        return "it has finished" if report is not None and report.state == "finished" else "it does not run yet"
    return ""


def _capacity(member: Member, settings: Balancing) -> NodeCapacity:
    cpus = float(member.lease.get("cpus", "0") or "0") or 1.0
    return NodeCapacity(member.id, cpus=cpus, memory=member.number("memory"), network=settings.network)


def weigh(
    scene: Scene,
    settings: Balancing,
    now: float,
    *,
    strategy: str | None = None,
    model: str | None = None,
    lossy: bool = False,
    history: Mapping[str, History] | None = None,
) -> Answer:
    """Ask a strategy for a placement of every group, and judge it.

    `model`: only its executors may move. `lossy`: also those that would lose something by it. `history`: per model.
    Raises `UsageError` for a strategy that does not exist and for settings that make no sense; a group for which there
    is no placement, or whose strategy fails, keeps the one it has (`Answer.faults`).
    """
    name = settings.strategy if strategy is None else strategy
    policy = policy_of(settings)
    placement, parts = scene.current, list[Part]()
    blocked: list[Blocked] = []
    faults: dict[str, UsageError] = {}
    for group in scene.groups or ("",):
        problem = question(scene, group, placement, settings, model=model, lossy=lossy)
        try:
            own = _judged(name, problem, now, history or {}, policy)
        except UsageError as error:
            if not problem.executors:
                raise
            faults[group] = error
            continue
        parts += own
        placement = _after(placement, [move for part in own if part.verdict.apply for move in part.moves])
        step = transfer(problem, Placement({key: placement.workers[key] for key in problem.executors}))
        if isinstance(step, Blocked):
            blocked.append(step)
    return Answer(name, scene, placement, tuple(parts), _whole(scene, placement, settings), tuple(blocked), faults)


def question(
    scene: Scene,
    group: str,
    placement: Placement,
    settings: Balancing,
    *,
    model: str | None = None,
    lossy: bool = False,
) -> Problem:
    """The problem of one group: where its executors should be, while those of the others are as in `placement`.

    An executor that uses more than a worker may have counts as one that fills it: it cannot be made smaller by moving.
    """
    limits = limits_of(settings)
    others = _used(scene, placement, lambda key: group_of(key.model) != group)
    nodes = {
        name: _less(capacity, _sum(others.get(name, NOTHING), scene.standbys.get(name, Vector())), limits)
        for name, capacity in scene.nodes.items()
    }
    most = min(limits.gamma, max(capacity.cpus for capacity in scene.nodes.values()) * limits.fill)
    own = tuple(sorted(key for key in placement.workers if group_of(key.model) == group))
    mine = set(own)
    pinned = {
        key for key in own if key in scene.stuck or (key in scene.lossy and not lossy) or model not in (None, key.model)
    }
    return Problem(
        executors=own,
        workers=tuple(slot(name) for name in sorted(scene.nodes)),
        nodes=nodes,
        load={key: replace(scene.load[key], cpu=min(scene.load[key].cpu, most)) for key in own if key in scene.load},
        traffic={pair: flow for pair, flow in scene.traffic.items() if mine.issuperset(pair)},
        current=Placement({key: placement.workers[key] for key in own}),
        links=tuple(pair for pair in scene.links if mine.issuperset(pair)),
        apart=tuple(pair for pair in scene.apart if mine.issuperset(pair)),
        pinned=frozenset(pinned),
        limits=limits,
        horizon=settings.horizon,
    )


def _used(scene: Scene, placement: Placement, counts: Callable[[ExecutorKey], bool]) -> dict[str, Amounts]:
    some = {key: where for key, where in placement.workers.items() if counts(key)}
    problem = Problem(
        executors=tuple(some),
        workers=tuple(slot(name) for name in scene.nodes),
        load=scene.load,
        traffic=scene.traffic,
    )
    return used_resources(problem, Placement(some))


def _sum(used: Amounts, standbys: Vector) -> Amounts:
    return used[0] + standbys.cpu, used[1] + standbys.memory, used[2] + standbys.network


def _less(capacity: NodeCapacity, used: Amounts, limits: Limits) -> NodeCapacity:
    """What a node has left, so that the share `fill` of its whole is the bound for all groups together."""
    cpu, memory, network = (
        max(LEAST * amount, amount - taken / limits.fill)
        for amount, taken in zip((capacity.cpus, capacity.memory, capacity.network), used, strict=True)
    )
    return replace(capacity, cpus=cpu, memory=round(memory), network=network)


def _after(placement: Placement, moves: Iterable[Move]) -> Placement:
    return Placement({**placement.workers, **{move.executor: move.target for move in moves}})


def _judged(strategy: str, problem: Problem, now: float, history: Mapping[str, History], policy: Policy) -> list[Part]:
    """What the strategy proposes for each model of a group, and whether it is worth it.

    A model's moves are judged by its own traffic. They may need room that another model's moves make: when those are
    not worth it, the strategy is asked again with that model held where it is. Raises `UsageError` when there is no
    placement, or the strategy fails.
    """
    assert problem.current is not None
    running = severity(excesses(problem, problem.current))
    refused: dict[str, Part] = {}
    proposal = place(strategy, problem)
    while True:
        strain = severity(excesses(problem, proposal))
        lighter = strain < running - 1e-9
        parts = {model: _part(problem, proposal, model, now, history, policy, lighter) for model in _models(problem)}
        unworthy = {model: part for model, part in parts.items() if part.moves and not part.verdict.apply}
        if not unworthy or not any(part.verdict.apply for part in parts.values()):
            break
        refused |= unworthy
        problem = replace(problem, pinned=problem.pinned | {key for key in problem.executors if key.model in unworthy})
        try:
            proposal = place(strategy, problem)
        except UsageError as error:
            return [*{**_refused(parts, error.message), **refused}.values()]
    if strain > running + 1e-9:
        parts = _refused(parts, f"the proposal breaks a limit: {excesses(problem, proposal)[0]}")
    return [*{**parts, **refused}.values()]


def _refused(parts: Mapping[str, Part], why: str) -> dict[str, Part]:
    return {
        model: Part(model, replace(part.verdict, apply=False, reason=why)) if part.verdict.apply else part
        for model, part in parts.items()
    }


def _models(problem: Problem) -> list[str]:
    return sorted({key.model for key in problem.executors})


def _part(
    problem: Problem,
    proposal: Placement,
    model: str,
    now: float,
    history: Mapping[str, History],
    policy: Policy,
    lighter: bool,
) -> Part:
    """One model alone. `lighter`: a limit is broken now, and less by the proposal; that is reason enough."""
    assert problem.current is not None
    mine = tuple(key for key in problem.executors if key.model == model)
    alone = replace(
        problem,
        executors=mine,
        nodes={},
        traffic={pair: flow for pair, flow in problem.traffic.items() if pair[0].model == model},
        current=Placement({key: problem.current.workers[key] for key in mine}),
        pinned=frozenset(),
        limits=Limits(alpha=None),
    )
    past = history.get(model, History())
    verdict = decide(alone, Placement({key: proposal.workers[key] for key in mine}), now, past, policy)
    waits = past.changed is not None and now - past.changed < policy.interval
    if lighter and verdict.explanation.moves and not waits:
        broken = excesses(problem, problem.current)[0]
        verdict = replace(verdict, apply=True, reason=f"the running plan breaks a limit: {broken}")
    return Part(model, verdict)


def _whole(scene: Scene, placement: Placement, settings: Balancing) -> Explanation:
    """All groups together. Numbers of executors are bounded within groups, so they are not judged here."""
    limits = replace(limits_of(settings), alpha=None, gamma=inf, delta=None)
    everything = Problem(
        executors=tuple(sorted(scene.current.workers)),
        workers=tuple(slot(name) for name in sorted(scene.nodes)),
        nodes=scene.nodes,
        load=scene.load,
        traffic=scene.traffic,
        current=scene.current,
        apart=scene.apart,
        limits=limits,
        horizon=settings.horizon,
    )
    return explain(everything, placement)


def relief(scene: Scene, settings: Balancing, *, kept: Collection[ExecutorKey] = ()) -> Transfer | tuple[Blocked, ...]:
    """The one move by which the most overloaded node gets less (SYSTEMS Z5), or why there is none; an empty tuple when
    no node has too much. `kept`: executors that moved a short while ago, and stay."""
    still = replace(scene, stuck={**scene.stuck, **dict.fromkeys(kept, "it was moved a short while ago")})
    blocked: list[Blocked] = []
    for group in scene.groups:
        problem = question(still, group, scene.current, settings)
        assert problem.current is not None
        step = transfer(problem, problem.current)
        if isinstance(step, Transfer):
            return step
        if step is not None:
            blocked.append(step)
    return tuple(blocked)


def feeding(scene: Scene, node: str) -> tuple[ExecutorKey, ...]:
    """The sources from which records come to a node, directly or not: to slow them relieves it."""
    before: dict[ExecutorKey, list[ExecutorKey]] = {}
    for producer, consumer in scene.links:
        before.setdefault(consumer, []).append(producer)
    waiting = [key for key, where in scene.current.workers.items() if where.node == node]
    seen = set(waiting)
    while waiting:
        for producer in before.get(waiting.pop(), ()):
            if producer not in seen:
                seen.add(producer)
                waiting.append(producer)
    return tuple(sorted(key for key in seen if key not in before))
