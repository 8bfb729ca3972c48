"""Operations on models as tests want them: from a file to a package to a node, and the model as it is afterwards."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from penstock.cluster.agent import NodeAgent
from penstock.cluster.service import Ask, ModelView, Outcome
from penstock.model.package import build


async def package(source: str | Path) -> bytes:
    """The bytes of the package that is built from a file or directory."""
    with tempfile.TemporaryDirectory() as folder:
        built = await asyncio.to_thread(build, Path(source), Path(folder))
        return built.path.read_bytes()


async def upload(agent: NodeAgent, source: str | Path) -> str:
    """Its digest, once the node has it."""
    content = await package(source)

    async def chunks():
        for at in range(0, len(content), 2**16):
            yield content[at : at + 2**16]

    return (await agent.receive(chunks())).digest


def settled(outcome: Outcome) -> ModelView:
    """The model after an operation that is over."""
    assert not outcome.pending, outcome
    assert outcome.model is not None
    return outcome.model


async def add(agent: NodeAgent, source: str | Path, name: str | None = None, **ask) -> ModelView:
    return settled(await agent.add_model(await upload(agent, source), name, ask=Ask(**ask)))


async def update(
    agent: NodeAgent, name: str, source: str | Path | None = None, config=None, live=False, **ask
) -> ModelView:
    digest = None if source is None else await upload(agent, source)
    return settled(await agent.update_model(name, digest, config, live=live, ask=Ask(**ask)))


async def online(agent: NodeAgent, name: str, config=None, executors=None, **ask) -> ModelView:
    return settled(await agent.online(name, config, executors, ask=Ask(**ask)))


async def offline(agent: NodeAgent, name: str, **ask) -> ModelView:
    return settled(await agent.offline(name, ask=Ask(**ask)))


async def delete(agent: NodeAgent, name: str, **ask) -> None:
    outcome = await agent.delete_model(name, ask=Ask(**ask))
    assert not outcome.pending
