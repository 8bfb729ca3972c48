"""Fusing: which steps share an executor (a stage), and which edges become channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.flow.graph import EdgeShape, StageShape, Topology

if TYPE_CHECKING:
    from penstock.flow.graph import Graph


def _components(graph: Graph) -> dict[str, str]:
    """For each step the representative of the steps it is fused with: equal depth and joined by plain edges."""
    parent = {name: name for name in graph.steps}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for step in graph.steps.values():
        for port, source in enumerate(step.inputs):
            if not graph.is_shuffle(step, port) and graph.depths[source.step] == graph.depths[step.name]:
                parent[find(step.name)] = find(source.step)
    return {name: find(name) for name in graph.steps}


def topology(graph: Graph) -> Topology:
    """The stages (in order of depth, then of appearance) and the channel edges between them."""
    component = _components(graph)
    roots = sorted(
        dict.fromkeys(component.values()), key=lambda root: (graph.depths[root], list(graph.steps).index(root))
    )
    number = {root: i for i, root in enumerate(roots)}
    stage_of = {name: number[root] for name, root in component.items()}
    edges: list[EdgeShape] = []
    for step in graph.steps.values():
        for port, source in enumerate(step.inputs):
            if stage_of[source.step] == stage_of[step.name]:
                continue
            shuffle = graph.is_shuffle(step, port)
            edges.append(
                EdgeShape(
                    id=len(edges),
                    source_stage=stage_of[source.step],
                    source_step=source.step,
                    source_output=source.output,
                    target_stage=stage_of[step.name],
                    target_step=step.name,
                    target_port=port,
                    kind="shuffle" if shuffle else "pipe",
                    needs_values=step.needs_values or not shuffle,
                )
            )
    stages = []
    for i in range(len(roots)):
        members = [step for step in graph.steps.values() if stage_of[step.name] == i]
        stages.append(
            StageShape(
                id=i,
                steps=tuple(step.name for step in members),
                kinds=tuple(step.kind for step in members),
                has_source=any(step.kind == "source" for step in members),
                keyed=any(edge.kind == "shuffle" and edge.target_stage == i for edge in edges),
            )
        )
    sources = [step for step in graph.steps.values() if step.kind == "source"]
    return Topology(
        flow=graph.name,
        bounded=all(getattr(step, "source").bounded for step in sources),  # noqa: B009 - the source step's own field
        stages=tuple(stages),
        edges=tuple(edges),
        sources=tuple(step.name for step in sources),
        push_sources=tuple(step.name for step in sources if getattr(getattr(step, "source"), "accepts_push", False)),  # noqa: B009
        keyed_steps=tuple(step.name for step in graph.steps.values() if step.keyed_input),
        default_executors=graph.executors,
        dead_letters=not isinstance(graph.on_error, str),
    )
