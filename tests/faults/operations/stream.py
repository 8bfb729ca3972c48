"""A flow that runs while things go wrong: records pushed through one node, in order, none lost, none twice."""

from __future__ import annotations

import asyncio
from functools import partial

import httpx
from tests.cluster.nodes import until
from tests.faults.operations.cluster import PATIENCE, Cluster


class Stream:
    """Pushes numbers into the model `chain` at one node, and knows what it has to have made of them."""

    def __init__(self, cluster: Cluster, node: str) -> None:
        self._cluster, self._node = cluster, node
        self.state = [0, 0]
        """How many numbers, and a sum in which their order counts."""
        self._last = ""

    async def push(self, count: int = 10) -> None:
        """Push so many numbers, one by one; where one is not taken at once, again, as a client does."""
        for _ in range(count):
            number = self.state[0] + 1
            await until(partial(self._taken, number), PATIENCE)
            self.state = [number, (self.state[1] * 31 + number) % 1_000_003]

    async def _taken(self, number: int) -> bool:
        url = f"{self._cluster.address(self._node)}/v1/streams/default/chain/numbers"
        headers = {"Penstock-Client": "test", "Penstock-Seq": str(number)}
        response = await self._cluster.client.post(url, json=[number], headers=headers)
        assert response.status_code in (200, 503), f"number {number}: {response.status_code} {response.text}"
        return response.status_code == 200

    async def agrees(self) -> None:
        """Wait until the model has exactly this."""
        try:
            await until(self._agrees, PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{self.state} was pushed; the model says {self._last}") from error

    async def _agrees(self) -> bool:
        url = f"{self._cluster.address(self._node)}/v1/state/default/chain/chain/all"
        try:
            response = await self._cluster.client.get(url)
        except httpx.TransportError as error:
            self._last = repr(error)
            return False
        self._last = response.text
        if response.status_code != 200:
            return False
        value = response.json()["value"]
        assert value is None or value[0] <= self.state[0], f"{value} is more than was pushed: {self.state}"
        return value == self.state

    async def keeps_flowing(self, seconds: float) -> None:
        """Push for so long, and check all the while."""
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            await self.push(2)
            await self.agrees()
            await asyncio.sleep(0.05)


async def workers(cluster: Cluster, node: str, model: str = "chain") -> dict[str, int]:
    """Executor -> the process that runs it."""
    found = (await cluster.get(node, f"/v1/models/default/{model}")).json()
    return {executor["id"]: executor["pid"] for executor in found["executors"]}
