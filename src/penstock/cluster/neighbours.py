"""The other nodes: as sources of packages, and as those who must agree that Redis is away for everybody."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Collection, Sequence

from penstock.cluster.routing import AskPackage, AskPromise, Questions
from penstock.cluster.service import Unavailable
from penstock.cluster.store import Sight
from penstock.cluster.transfer import Source
from penstock.settings import ClusterSettings

_ASKED_WITHIN = 1 / 6
"""Of a lease: so long a node may take to promise."""
_QUESTIONS = 10
"""It is asked at most so often in that time."""


class Peer:
    """Another node as a source of packages."""

    def __init__(self, name: str, address: str, questions: Questions, timeout: float) -> None:
        self.name, self._address = name, address
        self._questions, self._timeout = questions, timeout

    async def read(self, digest: str, offset: int, size: int) -> tuple[bytes, int] | None:
        """See `Source`."""
        answer = await self._questions.ask_at(self.name, self._address, AskPackage(digest, offset, size, self._timeout))
        match answer.value:
            case None if answer.ok:
                return None
            case [bytes() as piece, int() as total] if answer.ok:
                return piece, total
            case _:
                raise Unavailable(answer.problem or f"node {self.name} gave an answer that is none")


class Neighbours:
    """Everybody who holds a lease, as last seen."""

    def __init__(self, node: str, questions: Questions, sight: Callable[[], Sight], settings: ClusterSettings) -> None:
        self._node, self._questions, self._sight, self._settings = node, questions, sight, settings
        self._addresses: dict[str, str] = {}
        """As last heard, also of nodes whose lease is not in force any more."""

    def _refresh(self) -> Sight:
        sight = self._sight()
        for name, fields in sight.fields.items():
            if name != self._node and fields.get("address"):
                self._addresses[name] = fields["address"]
        return sight

    def sources(self, first: str) -> Sequence[Source]:
        """The nodes that may have a package, `first` first, the others in any order so that they share the load."""
        sight = self._refresh()
        names = [name for name in sight.fields if name in self._addresses]
        random.shuffle(names)
        names.sort(key=lambda name: name != first)
        return [Peer(name, self._addresses[name], self._questions, self._settings.request) for name in names]

    async def promise(self, members: Collection[str]) -> bool:
        """Whether every one of `members` promises to take nobody for lost; see `Participant.promise`."""
        self._refresh()
        others = [name for name in members if name != self._node]
        if any(name not in self._addresses for name in others):
            return False
        return all(await asyncio.gather(*(self._promises(name) for name in others)))

    async def _promises(self, name: str) -> bool:
        """A node that still believes in Redis is asked again: it may notice a moment later than this one."""
        limit = self._settings.lease * _ASKED_WITHIN
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                while True:
                    with contextlib.suppress(Unavailable):
                        question = AskPromise(self._node, limit)
                        answer = await self._questions.ask_at(name, self._addresses[name], question)
                        if answer.ok and answer.value is True:
                            return True
                    await asyncio.sleep(limit / _QUESTIONS)
        return False
