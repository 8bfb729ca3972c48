"""A cluster inside the test process: real agents, real Redis, real workers; nodes reach each other without sockets."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx

from penstock.cluster.agent import NodeAgent
from penstock.settings import ClusterSettings, RunSettings

DEADLINE = 30.0


def settings(prefix: str, **changes: Any) -> ClusterSettings:
    """Short leases, so that tests are short; executors are where tests expect them."""
    values = {
        "rebalance": False,
        "lease": 1.5,
        "leader_lease": 1.5,
        "poll": 0.2,
        "warm_workers": 1,
        "found_after": 0.05,
        **changes,
    }
    return ClusterSettings(prefix=prefix, **values)


def asynchronous(test: Callable[..., Any]) -> Callable[..., Any]:
    """Run a coroutine function as a test; tasks that it leaves running are a failure."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def main() -> None:
            await test(*args, **kwargs)
            await asyncio.sleep(0)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks left running: {left}"

        asyncio.run(main())

    return run


async def until(condition: Callable[[], Any], seconds: float = DEADLINE) -> Any:
    """Wait until `condition()` (or what it awaits) is true, and return it."""
    value: Any = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                value = condition()
                if asyncio.iscoroutine(value):
                    value = await value
                if value:
                    return value
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(
            f"the condition did not come true within {seconds} s; the last value was {value!r}"
        ) from None


class Cluster:
    """Agents by name."""

    def __init__(self, url: str, prefix: str, **changes: Any) -> None:
        self.url, self.settings = url, settings(prefix, **changes)
        self.agents: dict[str, NodeAgent] = {}
        self._stack = AsyncExitStack()

    def make(self, name: str, **more: Any) -> NodeAgent:
        """An agent that is not started."""
        return NodeAgent(
            more.pop("url", self.url),
            name=name,
            address=f"http://127.0.0.1/{name}",
            settings=more.pop("settings", self.settings),
            run_settings=more.pop("run_settings", RunSettings(metrics_interval=0.1)),
            transport=httpx.MockTransport(self._carry),
            **more,
        )

    async def add(self, *names: str, **more: Any) -> None:
        """Start nodes, one after the other."""
        for name in names:
            agent = self.make(name, **more)
            await self._stack.enter_async_context(agent)
            self.agents[name] = agent
            await until(lambda agent=agent: _ready(agent))

    async def _carry(self, request: httpx.Request) -> httpx.Response:
        agent = self.agents.get(request.url.path.split("/")[1])
        if agent is None:
            raise httpx.ConnectError("no such node")
        try:
            body = await agent.internal(request.headers["X-Penstock-Cluster"], request.content)
        except PermissionError as error:
            return httpx.Response(403, text=str(error))
        return httpx.Response(200, content=body)

    async def remove(self, name: str) -> None:
        """Stop a node in good order."""
        await self.agents.pop(name).stop()

    async def __aenter__(self) -> Cluster:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


async def _ready(agent: NodeAgent) -> bool:
    return not await agent.ready()
