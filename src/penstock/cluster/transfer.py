"""Fetching a package from other nodes, chunk by chunk: nobody is believed, the digest decides.

A source that dies half-way is followed by the next one at the same place. When the whole has another digest, the source
that it came from is at fault; where several have contributed, those that have not are asked first, then each one alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from penstock.cluster.cancellation import check_cancelled, times_cancelled
from penstock.cluster.disk import LibraryError, Part, free_space, full, on_disk
from penstock.errors import PenstockError

CHUNK = 2**20
"""Bytes that a source is asked for at a time."""
PATIENCE = 10.0
"""Seconds that a source may take for one chunk."""


class Source(Protocol):
    """A node that may have a package."""

    @property
    def name(self) -> str:
        """Of the node, for messages."""

    async def read(self, digest: str, offset: int, size: int) -> tuple[bytes, int] | None:
        """At most `size` bytes from `offset`, and the size of the whole package; `None`: it does not have it. Raises
        `PenstockError` when it cannot be reached."""


class TransferError(LibraryError):
    """No source has given the package. `problems` says why, for each source by name."""

    def __init__(self, message: str, *, remedy: str | None = None, problems: dict[str, str] | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.problems = problems or {}


async def fetch(
    digest: str, sources: Sequence[Source], path: Path, *, limit: int, patience: float = PATIENCE
) -> dict[str, str]:
    """Fetch a package into the file `path`, fsynced (its directory is not).

    Sources are tried in the given order, `patience` seconds per chunk; the whole takes as long as it takes, so the
    caller sets a deadline around it. `limit`: bytes that a package may have. The answer is what was wrong with which
    source until it worked. Raises `TransferError` when it did not, `DiskError`; then the file is not worth anything.
    """
    fetching = _Fetch(digest, path, limit, patience)
    if await fetching.run(sources):
        return fetching.problems
    if not sources:
        raise TransferError(
            f"package {digest[:12]} is not on this node, and there is no other node to ask",
            remedy="start a node that has it, or upload the package again",
        )
    told = "; ".join(f"{name}: {problem}" for name, problem in fetching.problems.items())
    raise TransferError(
        f"package {digest[:12]} could not be fetched from any node: {told}",
        remedy="see whether those nodes run and reach each other; a corrupt copy goes when its node is restarted",
        problems=fetching.problems,
    )


class _Trouble(Exception):
    """A source cannot be used any further; what it has given so far may be right."""


class _Contradiction(Exception):
    """What was received cannot all belong to the package."""


class _Fetch:
    def __init__(self, digest: str, path: Path, limit: int, patience: float) -> None:
        self._digest, self._path, self._limit, self._patience = digest, path, limit, patience
        self.problems: dict[str, str] = {}

    async def run(self, sources: Sequence[Source]) -> bool:
        """Whether the package is there now. Each round has fewer sources than the one that led to it."""
        rounds = [list(sources)]
        while rounds:
            group = rounds.pop(0)
            givers: list[Source] = []
            try:
                if await self._round(group, givers):
                    return True
            except _Contradiction as error:
                if len(givers) == 1:
                    self.problems[givers[0].name] = str(error)
                fresh = [source for source in group if source not in givers and source.name not in self.problems]
                if fresh:
                    rounds.append(fresh)
                if len(givers) > 1:
                    rounds += [[giver] for giver in givers]
        return False

    async def _round(self, group: Sequence[Source], givers: list[Source]) -> bool:
        """Read from the start, going on with the next source where one ends. `False`: they do not have it all. Adds to
        `givers` whose word was relied on. Raises `_Contradiction`."""
        part, total = Part(self._path), None
        try:
            await on_disk(self._path, part.open)
            for source in group:
                try:
                    while total is None or part.size < total:
                        data, total = await self._ask(source, part.size, total, givers)
                        await on_disk(self._path, partial(part.write, data), needed=total)
                    break
                except _Trouble as error:
                    self.problems[source.name] = str(error)
            else:
                return False
            if part.digest() != self._digest:
                raise _Contradiction(f"its copy is corrupt (digest {part.digest()[:12]})")
            await on_disk(self._path, part.sync, needed=total)
            return True
        finally:
            part.close()

    async def _ask(self, source: Source, offset: int, total: int | None, givers: list[Source]) -> tuple[bytes, int]:
        """The next chunk, and the size of the whole. Raises `_Trouble`, `_Contradiction`."""
        wanted = CHUNK if total is None else min(CHUNK, total - offset)
        before = times_cancelled()
        try:
            async with asyncio.timeout(self._patience):
                answer = await source.read(self._digest, offset, wanted)
            check_cancelled(before)
        except (TimeoutError, PenstockError) as error:
            check_cancelled(before)
            reason = error.message if isinstance(error, PenstockError) else f"no answer within {self._patience:g} s"
            raise _Trouble(reason) from error
        if answer is None:
            raise _Trouble("it does not have it" if offset == 0 else f"it does not have it any more, at byte {offset}")
        data, size = answer
        if not 1 <= size <= self._limit:
            raise _Trouble(f"it says that the package has {size} bytes; 1 to {self._limit} are possible")
        if total is not None and size != total:
            givers += [source] if source not in givers else []
            raise _Contradiction(f"it says {size} bytes, after {total} bytes were announced")
        if not data or len(data) > min(wanted, size - offset):
            raise _Trouble(f"it sent {len(data)} bytes, where {min(wanted, size - offset)} of {size} are missing")
        if total is None and free_space(self._path) < size:
            raise full(self._path, size)
        givers += [source] if source not in givers else []
        return data, size
