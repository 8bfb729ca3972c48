"""Placements and proposals as people and programs are shown them: the views of `balance_views`; pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import msgspec

from penstock.cluster.balance_views import (
    EdgeView,
    ModelVerdict,
    MoveView,
    RebalanceView,
    ResourceView,
    SituationView,
)
from penstock.cluster.balancing import Answer, Scene
from penstock.cluster.bottlenecks import Bottleneck
from penstock.cluster.measuring import Measurement, key_of
from penstock.cluster.plan import Plan
from penstock.cluster.service import ModelView, NodeView, PlacementView
from penstock.placement.cost import rate
from penstock.placement.explain import Situation, situation
from penstock.placement.limits import Limits
from penstock.placement.plan import ExecutorKey, Problem

HEAVIEST = 10
"""Edges that are told with a placement."""


def name_of(key: ExecutorKey) -> str:
    """An executor as plans call it."""
    return f"{key.stage}.{key.index}"


def situation_view(found: Situation) -> SituationView:
    """What a placement amounts to."""
    return SituationView(
        cut=found.share,
        records=found.cut.records,
        bytes=found.cut.bytes,
        latency=found.latency,
        load=dict(found.load),
        broken=[str(excess) for excess in found.broken],
    )


def rebalance_view(answer: Answer, *, dry_run: bool, horizon: float) -> RebalanceView:
    """The answer to somebody who asked for a better placement."""
    scene, whole = answer.scene, answer.whole
    moves = [
        MoveView(
            model=move.executor.model,
            executor=name_of(move.executor),
            source=move.source.node,
            target=move.target.node,
            state=move.state,
            obstacle=scene.without(move.executor),
        )
        for move in answer.moves
    ]
    verdicts = [
        ModelVerdict(
            model=part.model,
            apply=part.verdict.apply,
            reason=part.verdict.reason,
            moves=len(part.moves),
            cut_before=part.verdict.explanation.before.share,
            cut_after=part.verdict.explanation.after.share,
        )
        for part in answer.parts
    ]
    staying = Counter(why for key in scene.current.workers if (why := scene.without(key)))
    return RebalanceView(
        strategy=answer.strategy,
        dry_run=dry_run,
        apply=bool(moves),
        reason=_reason(answer),
        before=situation_view(whole.before),
        after=situation_view(whole.after),
        moves=moves,
        cost=whole.cost,
        gain=whole.gain,
        horizon=horizon,
        models=verdicts,
        blocked=[str(blocked) for blocked in answer.blocked],
        faults={group: str(error) for group, error in answer.faults.items()},
        staying=dict(sorted(staying.items())),
    )


def _reason(answer: Answer) -> str:
    if answer.moves:
        return str(answer.whole)
    if not answer.scene.current.workers:
        return "no model is online"
    reasons = [str(fault) for fault in answer.faults.values()]
    reasons += [part.verdict.reason for part in answer.parts if part.moves]
    if not reasons:
        return "the running placement stays: nothing would move"
    more = f"; and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    return f"the running placement stays: {reasons[0]}{more}"


def with_vectors(view: ModelView, found: Measurement) -> ModelView:
    """A model whose executors say what they use."""
    for executor in view.executors:
        vector = found.executors.get(key_of(view.name, executor.id))
        if vector is not None:
            executor.network, executor.buffer = vector.network, vector.buffer
    return view


def with_resources(view: NodeView, found: Measurement, bottlenecks: tuple[Bottleneck, ...]) -> NodeView:
    """A node that says what it uses, and of what it has too little."""
    vector = found.nodes.get(view.id)
    if vector is not None:
        view.network, view.buffer = vector.network, vector.buffer
    view.bottleneck = "; ".join(str(each) for each in bottlenecks)
    return view


def standbys_of(plan: Plan) -> dict[str, list[str]]:
    """Executor -> the nodes of its standbys."""
    return {
        executor: nodes
        for executor, record in plan.records.items()
        if (nodes := sorted(plan.replicas[name].node for name in record.standbys if name in plan.replicas))
    }


def with_situation(view: PlacementView, scene: Scene, found: Measurement) -> PlacementView:
    """A model's placement with cut, load and edges of this moment, and why its executors stay."""
    own = tuple(sorted(key for key in scene.current.workers if key.model == view.model))
    mine = set(own)
    if not own:
        return view
    workers = tuple(sorted(set(scene.current.workers.values())))
    problem = Problem(
        executors=own,
        workers=workers,
        load=scene.load,
        traffic={pair: flow for pair, flow in scene.traffic.items() if mine.issuperset(pair)},
        limits=Limits(alpha=None),
    )
    placed = replace(scene.current, workers={key: scene.current.workers[key] for key in own})
    edges = sorted(problem.traffic.items(), key=lambda edge: (-rate(edge[1]), edge[0]))[:HEAVIEST]
    home = {key: slot.node for key, slot in placed.workers.items()}
    vectors = {key: found.executors[key] for key in own if key in found.executors}
    return msgspec.structs.replace(
        view,
        now=situation_view(situation(problem, placed)),
        heaviest=[
            EdgeView(
                producer=name_of(producer),
                consumer=name_of(consumer),
                source=home[producer],
                target=home[consumer],
                records=flow.records,
                bytes=flow.bytes,
                remote=home[producer] != home[consumer],
            )
            for (producer, consumer), flow in edges
        ],
        resources={
            name_of(key): ResourceView(
                cpu=vector.cpu,
                memory=vector.memory,
                network=vector.network,
                buffer=vector.buffer,
                state=scene.load[key].state if key in scene.load else 0,
            )
            for key, vector in vectors.items()
        },
        stays={name_of(key): why for key in own if (why := scene.without(key))},
    )
